"""Keyword rules: what a message is about when nothing better than its words is at hand.

A rule is a category and its alternatives; an alternative holds when the message has a word that
begins with each of its stems, in any order. The longest alternative that holds wins, the earlier
rule on a tie. Written by hand from the category names and past cases; no statistics, no database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

UNKNOWN = "unknown"

RULES = """
compromised_card: stole detail | fraud card | compromis | someone us card | hack | copied card | not me card us
lost_or_stolen_phone: phone los | phone stole | lost phone | mobile stole | phone missing | phone lost app
lost_or_stolen_card: lost card | stole card | card missing | lose card | card gone | find card cannot
card_swallowed: swallow | machine ate | atm ate | atm kept | atm took card | stuck card | machine card back | retain card
pin_blocked: pin block | unblock pin | pin attempt | wrong pin many | locked pin | too many pin
change_pin: change pin | new pin | reset pin | pin different | set pin
passcode_forgotten: passcode | forgot code | forgot password | password reset | log cannot password
activate_my_card: activat
card_about_to_expire: expir
card_arrival: card arriv not | still wait card | card not receiv | where card | track card | card come yet | locate card
card_delivery_estimate: how long card deliver | when card arriv | deliver day | deliver date | deliver express | card how long get | get card by | ship
card_linking: link card | add card app | reactivat card | found card | card back app | put card app
card_acceptance: where card accept | where can card us | card accept | shops accept
card_not_working: card not work | card broken | card stopped
contactless_not_working: contactless
virtual_card_not_working: virtual card not work | disposable card not work | virtual card declin | virtual card reject | virtual card deni
disposable_card_limits: disposable how many | disposable limit | disposable maximum | virtual how many | disposable transact
get_disposable_virtual_card: disposable | disposable virtual get | disposable order
getting_virtual_card: virtual card | virtual card get | virtual card order
getting_spare_card: second card | spare | another card | extra card | additional card | more than one card | two cards | card daughter | card family | card someone else
order_physical_card: order card | physical card order | physical card cost | order physical | charge physical card
get_physical_card: physical card | pin find | see pin | where pin | my pin what | card pin know
visa_or_mastercard: visa or mastercard | visa mastercard | mastercard | choose visa
supported_cards_and_currencies: what cards support | which cards | type cards | currencies add money | american express | credit card top | which currencies card
card_payment_fee_charged: charged fee card | fee card payment | extra fee card | fee purchase | extra charge card
card_payment_not_recognised: payment not recogni | not make payment | payment don recogni | purchase not me | not recogni card | unknown payment | unauthori
card_payment_wrong_exchange_rate: wrong exchange card | exchange rate purchase | exchange rate payment | rate wrong bought | foreign purchase rate | rate abroad payment
declined_card_payment: card declin | payment declin | card payment not work | payment not go | card reject | card refus
pending_card_payment: card payment pend | payment pend | payment still pend | payment process still
reverted_card_payment?: payment revert | payment return | payment cancel refund | payment came back | purchase return account money back | payment sent back
transaction_charged_twice: twice | charged double | duplicat | two times charg | charged multiple | same charge
extra_charge_on_statement: statement extra | statement fee | extra charge | extra pound | statement charge | strange fee | 1 fee | extra 1 | pound fee
request_refund: refund request | want refund | get refund | ask refund | refund item | money back item | refund how
Refund_not_showing_up: refund not show | refund not yet | refund miss | where refund | refund still | refund not receiv | refund not statement
direct_debit_payment_not_recognised: direct debit
atm_support: which atm | any atm | atm accept | atm near | atm where | atm us
cash_withdrawal_charge: atm fee | withdraw fee | withdraw charg | cash fee | fee cash | charg cash | charged withdraw
cash_withdrawal_not_recognised: withdraw not recogni | withdraw not me | withdraw did not make | cash not me | withdraw unknown | withdraw someone
declined_cash_withdrawal: atm declin | withdraw declin | atm not let | atm not give | can not withdraw | not get cash | cash declin | withdraw not work | cannot withdraw
pending_cash_withdrawal: withdraw pend | cash pend | atm pend | cash withdraw still
wrong_amount_of_cash_received: wrong amount cash | atm gave less | cash wrong | not right amount cash | atm wrong amount | less cash | atm only gave | withdraw less | received less
wrong_exchange_rate_for_cash_withdrawal: exchange rate cash | exchange rate withdraw | rate atm | rate withdraw wrong | abroad cash rate
exchange_charge: exchange fee | exchange charg | cost exchange | fee exchange currenc | extra exchange | discount exchange
exchange_rate: exchange rate | rate | rate what | interest exchange
exchange_via_app: exchange app | exchange currenc | convert | change currenc | exchange gbp | switch currenc | exchange crypto
fiat_currency_support: fiat | which currenc | what currenc | currenc support | currencies hold | currencies support | hold currenc
country_support: country | countries | eu us | europe | where available | us card outside | live uk | countries support
age_limit: age | how old | children | my kid | child account | my son | my daughter | years old | 18
apple_pay_or_google_pay: apple | google pay | apple watch
automatic_top_up: auto top | automatic | auto-top | top automatic | top up low balance
top_up_by_bank_transfer_charge: top bank transfer fee | charge transfer top | top up transfer cost | sepa | swift | charge receiv transfer | transfer in fee
top_up_by_card_charge: top card fee | top card charg | top up fee | charged top | top up cost
top_up_by_cash_or_cheque: cheque top | cash top | top up cash | deposit cash | deposit cheque | cheque | check deposit
top_up_failed: top fail | top not work | top declin | top reject | top did not | top deni | top not go
top_up_limits: top limit | top maximum | top most | limit adding money
top_up_reverted: top revert | top cancel | top return | top back
topping_up_by_card: top card | top up card | top debit card | add money card | top where | top money not
pending_top_up: top pend | top still | top not show | top not yet | top how long
verify_top_up: verif top | verif code | top up verif | code top | verif card top
balance_not_updated_after_bank_transfer: balance transfer not | balance not updat | transfer not show | transfer not account | transfer not in balance | bank transfer not show | balance same transfer
balance_not_updated_after_cheque_or_cash_deposit: cheque not | cash deposit not | deposit not show | deposit cheque balance | deposit balance | cheque balance not | deposited cash not
beneficiary_not_allowed: beneficiar | not allow transfer | beneficiary not allow | recipient not allow
cancel_transfer: cancel transfer | cancel | transfer wrong account | revert transfer | undo transfer | stop transfer | mistake transfer | cancel payment
declined_transfer: transfer declin | transfer reject | transfer refus | declin transfer why
failed_transfer: transfer fail | transfer not work | transfer not go | cannot transfer | transfer not complet | transfer unsuccess | transfer error
pending_transfer: transfer pend | transfer still pend | transfer process still
receiving_money: salary | receive money | paid gbp | receiv salary | get paid | my employer | friend send money
transfer_fee_charged: transfer fee | transfer charg | fee transfer | charged sending | extra transfer
transfer_into_account: transfer into account | add money transfer | transfer money into | transfer from bank | put money bank | fund account | transfer my account how
transfer_not_received_by_recipient: transfer recipient not | transfer not receiv | transfer friend not | sent money not | transfer not arriv | recipient not | friend not receiv | transfer miss
transfer_timing: transfer how long | transfer take | transfer when | how long transfer | transfer china | transfer arriv when | transfer from europe | urgent transfer | transfer quick
unable_to_verify_identity: verif identity not | not verif identity | identity cannot | unable verif | identity not work | id not verif | identity fail | identity denied
verify_my_identity: verif identity | verif identity how | identity need what | prove identity | document identity | identity check
why_verify_identity: why verif identity | why identity | why need identity | verif reason | identity necess | why detail need | not want identity
verify_source_of_funds: source fund | source money | where money come | funds come from | source my
edit_personal_details: change address | change name | edit detail | personal detail | update detail | moved | change phone number | married | new address | details change
terminate_account: close account | delete account | terminat | cancel account | clos account | leav | account delet | deactivat account
"""  # noqa: E501 - a table: one rule, one line


@dataclass(frozen=True, slots=True)
class Match:
    """The category whose rule holds best and the stems that held; UNKNOWN and () if none does."""

    category: str
    stems: tuple[str, ...]


def match(text: str) -> Match:
    """What the rules say about `text`."""
    words = _words(text)
    best = Match(UNKNOWN, ())
    for category, alternatives in _rules():
        for stems in alternatives:
            if len(stems) > len(best.stems) and all(_begins(words, stem) for stem in stems):
                best = Match(category, stems)
    return best


def categories() -> tuple[str, ...]:
    """Every category that a rule names, in the rules' order."""
    return tuple(category for category, _ in _rules())


def _begins(words: frozenset[str], stem: str) -> bool:
    # Short stems are whole words: "not" is no "nothing", "age" no "agent".
    return stem in words if len(stem) <= 3 else any(word.startswith(stem) for word in words)


def _words(text: str) -> frozenset[str]:
    lowered = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    can = re.sub(r"\bcan'?t\b|\bcannot\b", "can not cannot", lowered)
    plain = re.sub(r"n't\b", " not", can)
    return frozenset(re.findall(r"[a-z0-9]+", plain))


@cache
def _rules() -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    lines = (line.split(": ", 1) for line in RULES.strip().splitlines())
    return tuple((name, tuple(tuple(one.split()) for one in rest.split("|"))) for name, rest in lines)
