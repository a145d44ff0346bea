"""The bank's policies: what happens next, within how many hours, and whether a person has to look.

The policies are the demo's own, invented; the categories they stand for are BANKING77's. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Urgency = Literal["high", "medium", "low"]

DUE_SOON_SHARE = 0.5
"""A case that has used up this share of its time is one step more urgent."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the bank does about an area's cases. `within_h` is the time to an answer, in hours."""

    area: str
    within_h: int
    worked_by: Literal["person", "agent"]
    action: str


POLICIES = {
    one.area: one
    for one in (
        Policy("security", 4, "person", "Block the card or phone, check the last payments by hand."),
        Policy("disputes", 24, "person", "Open a dispute and ask the customer to confirm each entry."),
        Policy("identity", 48, "person", "Check the documents, say which one is missing."),
        Policy("cash", 48, "agent", "Compare the machine's journal, correct a difference."),
        Policy("transfers", 48, "agent", "Trace the transfer, tell the customer where it stands."),
        Policy("top-up", 72, "agent", "Look the top-up up, book it or say what to try next."),
        Policy("cards", 120, "agent", "Send the steps; order a replacement where one is due."),
        Policy("exchange", 240, "agent", "Send the rates and fees that applied on the day."),
        Policy("account", 240, "agent", "Send the page of the help centre that answers this."),
    )
}

AREAS = {
    "security": "compromised_card lost_or_stolen_card lost_or_stolen_phone card_swallowed "
    "pin_blocked passcode_forgotten",
    "disputes": "card_payment_not_recognised cash_withdrawal_not_recognised "
    "direct_debit_payment_not_recognised transaction_charged_twice extra_charge_on_statement "
    "request_refund Refund_not_showing_up reverted_card_payment?",
    "identity": "unable_to_verify_identity verify_my_identity why_verify_identity verify_source_of_funds",
    "cash": "atm_support cash_withdrawal_charge declined_cash_withdrawal pending_cash_withdrawal "
    "wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal",
    "transfers": "balance_not_updated_after_bank_transfer beneficiary_not_allowed cancel_transfer "
    "declined_transfer failed_transfer pending_transfer receiving_money transfer_fee_charged "
    "transfer_into_account transfer_not_received_by_recipient transfer_timing",
    "top-up": "automatic_top_up balance_not_updated_after_cheque_or_cash_deposit pending_top_up "
    "top_up_by_bank_transfer_charge top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed "
    "top_up_limits top_up_reverted topping_up_by_card verify_top_up",
    "cards": "activate_my_card card_about_to_expire card_acceptance card_arrival "
    "card_delivery_estimate card_linking card_not_working card_payment_fee_charged change_pin "
    "contactless_not_working declined_card_payment disposable_card_limits "
    "get_disposable_virtual_card get_physical_card getting_spare_card getting_virtual_card "
    "order_physical_card pending_card_payment virtual_card_not_working visa_or_mastercard",
    "exchange": "card_payment_wrong_exchange_rate exchange_charge exchange_rate exchange_via_app "
    "fiat_currency_support supported_cards_and_currencies",
    "account": "age_limit apple_pay_or_google_pay country_support edit_personal_details terminate_account",
}

_AREA_OF = {category: area for area, names in AREAS.items() for category in names.split()}


def policy_for(category: str) -> Policy:
    """The policy of a category; that of `account`, the mildest, for one that no area lists."""
    return POLICIES[_AREA_OF.get(category, "account")]


def urgency(policy: Policy, age_days: int) -> Urgency:
    """How soon somebody has to act: by the policy's time, and one step up when half is gone."""
    steps: tuple[Urgency, ...] = ("low", "medium", "high")
    at = 2 if policy.within_h <= 24 else 1 if policy.within_h <= 72 else 0
    if age_days * 24 >= policy.within_h * DUE_SOON_SHARE:
        at = min(2, at + 1)
    return steps[at]


def overdue(policy: Policy, age_days: int) -> bool:
    """Whether the policy's time has passed."""
    return age_days * 24 > policy.within_h
