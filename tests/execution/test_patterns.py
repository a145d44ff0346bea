"""The control-flow patterns of docs/patterns.md: each chain is read from there, and does what its pattern says."""

import re
from pathlib import Path

import pytest

from agentmesh import define_agent
from agentmesh.errors import BadChain
from agentmesh.execution import chain as chains
from agentmesh.execution.tools import register_tool
from agentmesh.infrastructure import yamltext
from agentmesh.records import new_id
from agentmesh.state import children as between
from agentmesh.state import rescue, signals, steering
from agentmesh.state.memory import MemoryEngine

DOC = (Path(__file__).parents[2] / "docs" / "patterns.md").read_text()
SECTIONS = {
    int(number): said for number, said in re.findall(r"^### (\d+) (.*?)(?=^##|\Z)", DOC, re.MULTILINE | re.DOTALL)
}
CHAINS = {
    number: found[1] for number, said in SECTIONS.items() if (found := re.search(r"```yaml\n(.*?)```", said, re.DOTALL))
}
NOTIFY = "chain: notify\nsteps:\n  - tools: [mail]\n"
HOUR = 3600


def values(text):
    return yamltext.load(text, source="docs/patterns.md", error=BadChain).data


class Case:
    """A trace on the chain of one pattern. `did` is what its tools did, in order, as (tool, n)."""

    def __init__(self, lab, did):
        self.lab, self.did, self.trace, self.now = lab, did, None, 0

    def start(self, **payload):
        self.trace = self.lab.mesh.router.dispatch("work", "tester", "puppet", "c-1", payload)
        return self

    def go(self, **payload):
        self.start(**payload).lab.drain()
        return self

    @property
    def names(self):
        return [name for name, _ in self.did]

    @property
    def ended(self):
        return self.trace.status(), self.trace.result(0) if self.trace.status() == "done" else None

    def children(self):
        return self.lab.rows("SELECT * FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id", id=self.trace.id)

    def most_at_once(self, tool="%"):
        """Work the trace to its end: how many calls were ready or running at most."""
        most = 0
        while self.trace.status() != "done":
            self.lab.answer()
            found = self.lab.rows(
                "SELECT count(*) AS n FROM mesh.calls WHERE tool LIKE %(tool)s AND status IN ('ready', 'running')",
                tool=tool,
            )
            most = max(most, found[0]["n"])
        return most

    def later(self, seconds):
        """So much time passes: what waited for it goes on, and what nobody waits for any more is cancelled."""
        self.now += seconds
        self.lab.shift(self.now + 1)
        for due in signals.due(self.lab.mesh.db, batch=10):
            self.lab.bells.ring(signals.wake(self.lab.mesh.db, due))
        self.settle()

    def settle(self):
        self.lab.drain()
        for call in between.unwanted(self.lab.mesh.db, batch=10):
            between.drop(self.lab.mesh.db, call)
        self.lab.drain()

    def signal(self, name, payload=None, trace=None):
        sent = signals.send(self.lab.mesh.db, tenant="default", trace_id=trace or self.trace.id, name=name,
                            payload=payload, by="tester")  # fmt: skip
        self.lab.bells.ring(sent.rings)
        self.settle()

    def stop(self):
        """The signal goes to the branch that listens."""
        self.signal("stop", trace=next(one["id"] for one in self.children() if one["status"] == "waiting"
                                       and one["waits_for"] == "signal:stop"))  # fmt: skip

    def statuses(self):
        return [one["status"] for one in self.children()]


@pytest.fixture
def case(make_lab, tools, tmp_path, request):
    """case(tool=[results in turn]) -> a Case on the chain of the test's pattern; other tools return their name."""

    def make(**results):
        did = []
        text = CHAINS[request.node.get_closest_marker("pattern").args[0]]
        listed = re.findall(r"\btools?: \[?([a-z, ]+)", text + NOTIFY)
        named = {one.strip() for several in listed for one in several.split(",")}

        def tool(name):
            @register_tool(name, registry=tools, attempts=1)
            def run(n: object = None) -> object:
                did.append((name, n))
                left = results.get(name)
                return (left.pop(0) if left else name) if n is None or left else n

        for name in sorted(named):
            tool(name)
        (tmp_path / "config/chains").mkdir(parents=True)
        (tmp_path / "config/chains/notify.yaml").write_text(NOTIFY)
        helper = define_agent("helper", reasoner=lambda session: {"answer": dict(session.payload)}, grants=["*"])
        return Case(make_lab(helper, chain=values(text)), did)

    return make


def pattern(number):
    return pytest.mark.pattern(number)


def test_every_pattern_is_on_the_page_and_what_is_no_chain_says_that_it_is_left_out():
    assert sorted(SECTIONS) == list(range(1, 44))
    assert len(CHAINS) == 37
    assert {number for number, said in SECTIONS.items() if "\nLeft out" in said} == SECTIONS.keys() - CHAINS.keys()


def test_every_chain_on_the_page_is_run_by_a_test_of_its_own():
    marked = [
        mark.args[0] for one in globals().values() for mark in getattr(one, "pytestmark", []) if mark.name == "pattern"
    ]
    assert sorted(marked) == sorted(CHAINS)


@pytest.mark.parametrize("number", sorted(CHAINS))
def test_every_chain_on_the_page_is_read_without_a_mistake(number):
    text = yamltext.load(CHAINS[number], source="docs/patterns.md", error=BadChain)
    notify = yamltext.load(NOTIFY, source="notify.yaml", error=BadChain)
    assert chains.lint(text, chains.Known(chains={"notify": notify}))[1] == []


@pattern(1)
def test_sequence(case):
    assert case().go().names == ["pack", "ship"]


@pattern(2)
def test_parallel_split(case):
    split = case().start()
    split.lab.answer()
    assert split.statuses() == ["queued", "queued"]
    split.lab.drain()
    assert (sorted(split.names), split.ended) == (["bill", "pack"], ("done", {"goods": "pack", "money": "bill"}))


@pattern(3)
def test_synchronization(case):
    joined = case().go()
    assert joined.names == ["pack"]
    joined.later(HOUR)
    assert joined.names == ["pack", "bill", "ship"]


@pattern(4)
@pytest.mark.parametrize(("payload", "taken"), [
    ({"kilos": 40, "express": True}, "truck"), ({"kilos": 4, "express": True}, "plane"), ({"kilos": 4, "express": False}, "bike"),
])  # fmt: skip
def test_exclusive_choice(case, payload, taken):
    assert case().go(**payload).names == [taken]


@pattern(5)
@pytest.mark.parametrize(("express", "taken"), [(True, "plane"), (False, "bike")])
def test_simple_merge(case, express, taken):
    assert case().go(express=express).names == [taken, "ship"]


@pattern(6)
@pytest.mark.parametrize(("payload", "taken"), [({}, []), ({"gift": True}, ["wrap"]),
                                                ({"gift": True, "fragile": True}, ["pad", "wrap"])])  # fmt: skip
def test_multi_choice(case, payload, taken):
    chosen = case().go(**payload)
    assert (sorted(chosen.names), chosen.ended[0]) == (taken, "done")


@pattern(7)
def test_structured_synchronizing_merge(case):
    assert case().go(gift=True).names == ["wrap", "ship"]


@pattern(8)
def test_multi_merge(case):
    assert sorted(case().go().names) == ["bill", "mail", "mail", "pack"]


@pattern(10)
def test_arbitrary_cycles(case):
    round_ = case(review=["rewrite", "good", "good"], edit=["again", "done"]).go(drafted=True)
    assert round_.names == ["review", "draft", "review", "edit", "review", "edit"]


@pattern(11)
def test_implicit_termination(case):
    left = case().go(goods=False)
    assert (left.ended[0], left.statuses(), left.names) == ("done", ["done"], [])


@pattern(12)
def test_instances_without_synchronization(case):
    sent = case().start(items=[7, 8, 9])
    sent.lab.answer()
    assert (sent.ended, sent.statuses()) == (("done", "sent"), ["queued"] * 3)
    sent.lab.drain()
    assert [one["payload"] for one in sent.lab.rows(
        "SELECT payload FROM mesh.traces WHERE parent_id = %(id)s ORDER BY id", id=sent.trace.id
    )] == [{"item": 7}, {"item": 8}, {"item": 9}]  # fmt: skip


@pattern(13)
def test_instances_known_at_design_time(case):
    reviewed = case().go()
    assert (reviewed.statuses(), reviewed.names) == (["done"] * 3, ["ship"])


@pattern(14)
def test_instances_known_at_run_time(case):
    checked = case().go(items=[3, 1, 2])
    assert (sorted(checked.did[:3], key=str), checked.names[3:]) == (
        [("check", 1), ("check", 2), ("check", 3)],
        ["ship"],
    )


@pattern(15)
def test_instances_not_known_beforehand(case):
    fed = case().go()
    fed.signal("items", [1, 2])
    fed.signal("items", [3])
    assert fed.names == ["check"] * 3
    fed.signal("items", [])
    assert fed.names == ["check"] * 3 + ["ship"]


@pattern(16)
@pytest.mark.parametrize(("paid", "done"), [(True, ["ship"]), (False, ["remind"])])
def test_deferred_choice(case, paid, done):
    open_ = case().go()
    if paid:
        open_.signal("paid")
    open_.later(72 * HOUR)
    assert open_.names == done


@pattern(17)
def test_interleaved_parallel_routing(case):
    routed = case().start()
    assert (routed.most_at_once(), routed.names) == (1, ["pack", "bill", "ship"])


@pattern(18)
@pytest.mark.parametrize(("stage", "done"), [("open", ["amend", "ship"]), ("closed", ["ship"]), (None, ["ship"])])
def test_milestone(case, stage, done):
    stone = case()
    if stage is not None:
        stone.lab.start({"answer": 1}, context_id="c-1")  # makes the context
        stone.lab.bells.waiting.clear()
        MemoryEngine(stone.lab.mesh.db, tenant_id="default", context_id="c-1", trace_id=new_id()).store("stage", stage)
    assert stone.go().names == done


@pattern(19)
def test_cancel_activity(case):
    asked = case().go()
    assert len(signals.asked(asked.lab.mesh.db, tenant="default")) == 1
    asked.later(48 * HOUR)
    assert (signals.asked(asked.lab.mesh.db, tenant="default"), asked.names) == ([], ["hold"])


@pattern(20)
def test_cancel_case(case):
    stopped = case().go()
    steering.cancel(stopped.lab.mesh.db, tenant="default", trace_id=stopped.trace.id, by="ann", tree=True)
    stopped.settle()
    assert (stopped.trace.status(), stopped.statuses()) == ("cancelled", ["cancelled", "cancelled"])
    stopped.later(120 * HOUR)
    assert stopped.names == []


@pattern(21)
def test_structured_loop(case):
    assert case(grade=[1, 2, 5]).go(enough=4).names == ["grade", "grade", "grade", "ship"]


@pattern(22)
def test_recursion(case):
    assert case().go(n=5).ended == ("done", 120)


@pattern(24)
def test_persistent_trigger(case):
    early = case().go()
    early.signal("paid")
    assert early.names == []
    early.later(HOUR)
    assert early.names == ["ship"]


@pattern(25)
def test_cancel_region(case):
    region = case().go()
    region.stop()
    assert (sorted(region.statuses()), region.names) == (["cancelled", "done"], ["pack", "refund"])
    region.later(120 * HOUR)
    assert region.names == ["pack", "refund"]


@pattern(26)
def test_cancel_multiple_instance_activity(case):
    many = case().start(items=[1, 2, 3])
    while many.did != [("check", 1)]:
        many.lab.answer()
    waiting, many.lab.bells.waiting = many.lab.bells.waiting, type(many.lab.bells.waiting)()
    many.stop()
    many.lab.bells.ring(waiting)
    many.settle()
    assert many.names == ["check", "refund"]
    assert sorted(many.statuses()) == ["cancelled", "done"]


@pattern(27)
def test_complete_multiple_instance_activity(case):
    shops = case().start(shops=[1, 2, 3])
    shops.lab.answer()
    silent = next(one for one in shops.lab.calls(shops.trace) if one["args"] == {"n": 2})
    shops.lab.claim(silent)
    shops.lab.drain()
    assert shops.names == ["offer", "offer"]
    shops.lab.shift(HOUR + 1)
    for row in rescue.overdue(shops.lab.mesh.db, batch=10):
        shops.lab.bells.ring(rescue.give_back(shops.lab.mesh.db, row, "timeout"))
    shops.lab.drain()
    assert shops.did[2:] == [("ship", [1, None, 3])]


@pattern(29)
def test_cancelling_discriminator(case):
    first = case().go()
    first.settle()
    assert (first.names, first.statuses()) == (["ask", "ship"], ["done", "cancelled"])
    first.later(48 * HOUR)
    assert first.names == ["ask", "ship"]


@pattern(32)
def test_cancelling_partial_join(case):
    two = case().go()
    assert two.names == ["ask"]
    two.later(HOUR)
    assert (two.names, two.statuses()) == (["ask", "ask", "ship"], ["done", "done", "cancelled"])


@pattern(33)
def test_generalized_and_join(case):
    pairs = case().go(orders=2)
    for name, number in (("order", 1), ("order", 2), ("payment", 1), ("payment", 2)):
        pairs.signal(name, number)
    assert (pairs.did, pairs.ended[0]) == ([("match", [1, 1]), ("match", [2, 2])], "done")


@pattern(35)
def test_cancelling_partial_join_for_instances(case):
    enough = case().start(shops=[1, 2, 3, 4])
    enough.lab.answer()
    late = [enough.lab.bells.waiting.popleft() for _ in range(4)]
    for offers, names in ((1, ["offer"]), (1, ["offer", "offer", "ship"]), (2, ["offer", "offer", "ship"])):
        enough.lab.bells.ring([late.pop(0) for _ in range(offers)])
        enough.lab.drain()
        assert enough.names == names
    calls = enough.lab.calls(enough.trace)
    assert sorted(one["status"] for one in calls if one["tool"] == "offer") == [
        "cancelled",
        "cancelled",
        "done",
        "done",
    ]


@pattern(36)
@pytest.mark.parametrize(("need", "asked"), [(1, 2), (2, 4), (9, 5)])
def test_dynamic_partial_join_for_instances(case, need, asked):
    offers = case().go(need=need, rounds=[[3, 9], [8, 1], [2]])
    assert offers.names == ["offer"] * asked + ["ship"]


@pattern(37)
@pytest.mark.parametrize(("stock", "done"), [(0, ["bill", "count", "ship"]), (3, ["bill", "count", "pack", "ship"])])
def test_local_synchronizing_merge(case, stock, done):
    merged = case(count=[stock]).go()
    assert (sorted(merged.names), merged.names[-1]) == (done, "ship")


@pattern(38)
def test_general_synchronizing_merge(case):
    assert case(pack=["broken", "broken", "fine"]).go(money=False).names == ["pack", "pack", "pack", "ship"]


@pattern(39)
def test_critical_section(case):
    section = case().start()
    assert (section.most_at_once("drill"), section.names) == (1, ["prepare", "prepare", "drill", "drill"])


@pattern(40)
def test_interleaved_routing(case):
    rooms = case().start(rooms=[1, 2, 3])
    assert (rooms.most_at_once(), sorted(rooms.did)) == (1, [("clean", 1), ("clean", 2), ("clean", 3)])


@pattern(41)
def test_thread_merge(case):
    assert case().go(parcels=[5, 6, 7]).did[3:] == [("ship", 3)]


@pattern(42)
def test_thread_split(case):
    split = case().start()
    split.lab.answer()
    assert (split.ended, split.statuses()) == (("done", "sent"), ["queued", "queued"])


@pattern(43)
@pytest.mark.parametrize(("stock", "done", "result"), [(0, ["count"], "sold out"), (2, ["count", "ship"], "ship")])
def test_explicit_termination(case, stock, done, result):
    ended = case(count=[stock]).go()
    assert (ended.names, ended.ended) == (done, ("done", result))
