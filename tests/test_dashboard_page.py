"""Claims about the dashboard's page: a real Chromium, `goldstream dashboard` as a process, a broker, a gold set.

Each test ends with nothing on the page's console and no request to another host.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CONTRASTS, DESKTOP, MISSING, PHONE, chromium, find_chromium, go_to, new_page
from playwright.sync_api import expect
from steps import cases_on, until
from toys import NEW
from worked_factory import HOSTILE, REFUSED, Dashboard, Factory

from agents.expert import Decision
from streams.review import decide
from trainer.registry import incumbent, promote, promotions

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

expect.set_options(timeout=20_000)
PANELS = (
    "overview", "stuck", "flow-drawing", "passing", "funnel", "outcomes", "rules", "per-row", "roles", "budget",
    "trainers", "adapters", "review-panel", "dead-panel", "cases-panel",
)  # fmt: skip
EMPTY = ("passing", "funnel", "outcomes", "rules", "per-row", "roles", "review-panel", "dead-panel", "case-list")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def factory(kafka: str, base: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """One that has worked; tests that change it say what."""
    prefix = f"page{uuid.uuid4().hex[:8]}."
    made = Factory(tmp_path_factory.mktemp("worked"), kafka, prefix, base)
    made.work(base, run_folder)
    return made


@pytest.fixture(scope="module")
def dashboard(factory: Factory) -> Iterator[Dashboard]:
    with Dashboard(factory) as running:
        yield running


@pytest.fixture
def open_page(browser: Any, dashboard: Dashboard) -> Iterator[Open]:
    """Opens the page in a browser of its own, with the token in the address unless told otherwise."""
    opened: list[Any] = []

    def drawn(size: Any = DESKTOP, theme: str = "light", token: bool = True, at: Dashboard = dashboard) -> Any:
        opened.append(new_page(browser, at.url, size, theme))
        return go_to(opened[-1], at.url + (f"/#token={at.token}" if token else "/"))

    yield drawn
    for page in opened:
        page.context.close()
    assert [line for page in opened for line in page.watch.left()] == []


def test_every_panel_shows_what_the_factory_did(open_page: Open) -> None:
    page = open_page()
    for panel in PANELS:
        assert page.locator(f"#{panel}").inner_text().strip(), panel
    assert page.locator("#live").inner_text() == "Live"
    text = {panel: page.locator(f"#{panel}").inner_text() for panel in PANELS}
    assert "Gold rows\n48" in text["overview"]
    assert {"v0001", "v0002"} <= set(text["passing"].replace("\n", " ").split())
    assert "bad answer" in text["dead-panel"]
    assert "req-90" in text["cases-panel"]
    assert "polite" in text["rules"]
    assert "refused" in text["adapters"]
    titles = page.locator("#passing .event title").all_text_contents()
    assert [title.split(":")[0] for title in titles] == [
        "promotion to v0001-aaaaaa by gate",
        "promotion to v0002-bbbbbb by gate",
    ]


def test_every_arrow_to_a_reader_says_what_waits_and_how_fast_it_moves(open_page: Open) -> None:
    page = open_page()
    state = page.evaluate("fetch('/api/state').then((r) => r.json())")
    reading = {edge["id"] for edge in state["flow"]["edges"] if edge["group"]}
    drawn = set(page.locator("#flow-drawing g[data-edge]").evaluate_all("all => all.map((g) => g.dataset.edge)"))
    assert len(reading) >= 7
    assert reading <= drawn
    assert page.locator("#flow-drawing .lag").count() == len(reading)
    assert page.locator("#flow-drawing .rate").count() >= len(reading)
    page.get_by_text("As a table; pause and resume stages").click()
    assert page.locator("#flow-table tbody tr").count() == len(reading)


def test_an_old_record_that_nobody_reads_strikes_the_eye(open_page: Open) -> None:
    page = open_page()
    page.wait_for_selector('g.stuck[data-edge="attempts>judge"]', state="attached")
    stuck, calm = page.evaluate(
        "(ids) => ids.map((id) => document.querySelector(`g[data-edge='${id}'] .line`)).map((line) => "
        "parseFloat(getComputedStyle(line).strokeWidth))",
        ["attempts>judge", "accepted>strategist"],
    )
    assert stuck >= 4 * calm
    said = page.locator("#stuck").inner_text()
    assert "judge" in said
    assert "Nobody reads it" in said


def test_age_and_not_number_decides_how_loud_an_arrow_is(open_page: Open) -> None:
    page = open_page()
    busy = {"lag": 10_000, "oldest_s": 3.0, "rate_per_s": 900.0, "members": 2, "kind": "flow"}
    levels = page.evaluate(
        "(edges) => import('/waiting.js').then(({ level }) => edges.map((edge) => level(edge, edge.reader)))",
        [
            busy,
            busy | {"oldest_s": 90.0},
            busy | {"oldest_s": 700.0},
            busy | {"oldest_s": 90.0, "rate_per_s": 0.0, "lag": 1},
            busy | {"oldest_s": 90.0, "reader": {"state": "paused"}},
            busy | {"oldest_s": 90.0, "rate_per_s": 0.0, "kind": "retry"},
            busy | {"lag": 0, "oldest_s": None},
        ],
    )
    assert levels == ["calm", "slow", "late", "stuck", "held", "calm", "calm"]


def test_a_case_tells_its_story_with_the_quote_marked_in_the_answer(open_page: Open) -> None:
    page = open_page()
    page.locator("#case-text").fill("light number 3?")
    expect(page.locator("#case-list tbody tr")).to_have_count(1)
    page.locator("#case-list button.link").press("Enter")
    story = page.locator("#story")
    expect(story.locator("mark")).to_have_text(["wait here"])
    told = story.inner_text()
    assert "polite" in told
    assert "To mend it: say please" in told
    assert "ask for it with please" in told
    assert "$0.004" in told
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.focus") == "case-req-3"


def test_hostile_text_stays_text(open_page: Open) -> None:
    page = open_page()
    page.locator("#case-outcome").select_option("unresolved")
    page.locator("#case-list button.link", has_text="<script>alert(1)").click()
    page.wait_for_selector("#story[open]")
    shown = page.locator("#story").inner_text()
    assert shown.count("<script>alert(1)</script><img src=x onerror=alert(2)>") >= 5
    assert "\u202e" not in shown  # or the text would show itself as another
    assert page.locator("#story script, #story img").count() == 0
    assert HOSTILE  # Watch would have seen an alert


def test_a_review_lands_by_keyboard_alone(open_page: Open, factory: Factory) -> None:
    page = open_page()
    page.locator('nav a[href="#review"]').focus()
    while page.evaluate("document.activeElement.id") != "start-review":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#reviewing[open] .attempt")
    page.locator("#by").fill("ann")
    page.locator("#review-body").focus()
    case_id = page.locator("#reviewing-title .mono").inner_text()
    page.keyboard.press("e")
    page.keyboard.press("Control+A")
    page.keyboard.type("Please wait at the light.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(f"#toasts :text('edit: {case_id} is gold now')")
    expect(page.locator("#reviewing-title .mono")).not_to_have_text(case_id)
    second = page.locator("#reviewing-title .mono").inner_text()
    page.keyboard.press("r")
    page.keyboard.type("It gives an order.")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(f"#toasts :text('reject: {second} is unresolved now')")
    decided = {case.case_id: case for case in cases_on(factory.settings, "outcomes") if case.review is not None}
    edited, rejected = decided[case_id], decided[second]
    assert (edited.epoch, edited.attempts[-1].text) == (1, "Please wait at the light.")
    assert edited.review is not None
    assert (edited.review.decision, edited.review.by) == ("edit", "ann")
    assert rejected.review is not None
    assert (rejected.review.reason, rejected.review.rules) == ("It gives an order.", ("polite",))


def test_a_reviewer_who_was_slower_is_told_who_was_faster(open_page: Open, factory: Factory) -> None:
    page = open_page()
    page.watch.expected.append("409")
    page.locator("#review-panel button.link").nth(4).click()
    page.wait_for_selector("#reviewing[open] .attempt")
    case_id = page.locator("#reviewing-title .mono").inner_text()
    page.locator("#by").fill("ann")
    decide(factory.settings, case_id, Decision(decision="reject", by="bob", reason="It is rude."))
    page.locator("#review-body").press("a")
    page.wait_for_selector("#toasts .bad :text('bob rejected case')")
    expect(page.locator("#reviewing-title .mono")).not_to_have_text(case_id)


def test_a_redrive_is_counted_and_confirmed_before_anything_is_sent(open_page: Open, factory: Factory) -> None:
    page = open_page()

    def sent() -> set[str]:
        return {case.case_id for case in cases_on(factory.settings, "attempts") if case.epoch == 1}

    page.get_by_role("button", name="Redrive bad_answer at judge").click()
    page.wait_for_selector("#question[open]")
    assert "3 would be redriven" in page.locator("#question").inner_text()
    page.keyboard.press("Enter")  # the focus is on Cancel
    page.wait_for_selector("#question:not([open])", state="attached")
    assert sent() == set()
    page.get_by_role("button", name="Redrive bad_answer at judge").click()
    page.get_by_role("button", name="Redrive 3 letters").click()
    page.wait_for_selector("#toasts :text('3 redriven')")
    assert sent() == {"req-70", "req-71", "req-72"}


def test_a_rollback_by_keyboard_asks_why_and_happens(open_page: Open, factory: Factory) -> None:
    page = open_page()
    served = incumbent(factory.settings.adapters, "toy")
    page.locator('nav a[href="#training"]').focus()
    with factory.rollout():
        while page.evaluate("document.activeElement.dataset.focus") != "rollback-toy":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#question[open]")
        page.keyboard.press("Enter")  # a reason is needed
        assert page.locator("#question[open]").count() == 1
        page.keyboard.type("doses are wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#toasts .toast")
        until(lambda: incumbent(factory.settings.adapters, "toy") != served)
    assert "doses are wrong" in promotions(factory.settings.adapters, "toy")[-1].reason
    page.wait_for_selector("#adapters .commands :text('done')")


def test_a_rollback_that_rests_on_what_has_changed_since_is_refused(open_page: Open, factory: Factory) -> None:
    page = open_page()
    page.watch.expected.append("409")
    page.locator("[data-focus=rollback-toy]").click()
    page.locator("#question input").fill("doses are wrong")
    promote(factory.settings.adapters, "toy", NEW, by="hand", reason="another person's decision")
    with factory.rollout():
        page.locator("#question button.danger").click()
        page.wait_for_selector("#toasts .bad :text('somebody has decided since')")
    assert incumbent(factory.settings.adapters, "toy") == NEW


def test_a_version_that_the_gate_refused_is_promoted_only_against_a_warning(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name=f"Promote {REFUSED}").click()
    asked = page.locator("#question").inner_text()
    assert "The gate did not pass it" in asked
    assert page.locator("#question button.danger").inner_text() == "Promote against the gate"
    page.keyboard.press("Escape")


def test_a_gate_report_opens_in_a_frame_that_runs_no_script(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name=f"Gate report of {REFUSED}").click()
    frame = page.frame_locator("#report iframe")
    assert frame.locator("h1").inner_text() == f"The gate on {REFUSED}"
    assert frame.locator("html").evaluate("() => document.title") != "ran"
    page.watch.expected.append("Blocked script execution")


def test_a_write_without_the_token_asks_for_it_and_then_goes_on(open_page: Open, dashboard: Dashboard) -> None:
    page = open_page(token=False)
    page.watch.expected.append("401")
    page.get_by_text("As a table; pause and resume stages").click()
    page.get_by_role("button", name="pause refiner").click()
    page.locator("#question button.primary").click()
    page.wait_for_selector("#question input[name=token]")
    page.keyboard.type("not the token")
    page.keyboard.press("Enter")
    expect(page.locator("#question input[name=token]")).to_have_value("")
    page.keyboard.type(dashboard.token)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="resume refiner").click()
    page.locator("#question button.primary").click()
    page.get_by_role("button", name="pause refiner").wait_for()


def test_the_token_leaves_the_address_at_once(open_page: Open, dashboard: Dashboard) -> None:
    page = open_page()
    assert "token" not in page.url
    assert page.evaluate("sessionStorage.getItem('goldstream.token')") == dashboard.token


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_scrolls_sideways(open_page: Open, width: int) -> None:
    page = open_page({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for opener, sheet in (("#case-list button.link", "#story"), ("#start-review", "#reviewing")):
        page.locator(opener).first.click()
        page.wait_for_selector(f"{sheet}[open]")
        assert page.locator(f"{sheet} .sheet-body").evaluate("(body) => body.scrollWidth - body.clientWidth") <= 0
        page.keyboard.press("Escape")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(open_page: Open, theme: str) -> None:
    page = open_page(theme=theme)
    page.wait_for_selector("#stuck .stuck")
    found = page.evaluate(CONTRASTS, "body")
    page.locator("#case-list button.link").first.click()
    found += page.evaluate(CONTRASTS, "#story")
    page.keyboard.press("Escape")
    page.locator("#start-review").click()
    page.keyboard.press("r")
    found += page.evaluate(CONTRASTS, "#reviewing")
    assert len(found) > 300
    assert [line for line in found if line[0] < line[1]] == []


def test_a_reader_chooses_light_or_dark_over_the_system(open_page: Open) -> None:
    page = open_page(theme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    assert page.evaluate(ground) != dark
    page.reload()
    page.wait_for_selector("#flow-drawing svg")
    assert page.evaluate(ground) != dark


def test_the_first_tab_offers_to_skip_to_the_content(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    expect(skip).to_be_in_viewport(ratio=1)
    assert skip.evaluate("(link) => link === document.activeElement")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_every_control_has_a_name_and_charts_have_tables(open_page: Open) -> None:
    page = open_page()
    nameless = page.locator("button, a, input, select, textarea").evaluate_all(
        "all => all.filter((e) => e.checkVisibility() && !(e.getAttribute('aria-label') || e.textContent.trim() "
        "|| e.labels?.length || e.title)).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert page.locator(".chart svg[role=img][aria-label]").count() == page.locator(".chart svg").count() > 0
    assert page.locator(".chart + details table").count() == page.locator(".chart").count()
    assert page.locator("table:not(:has(caption))").count() == 0


def test_on_a_phone_the_flow_runs_downwards(open_page: Open) -> None:
    page = open_page(PHONE)
    order = ["intake", "prompts", "student", "attempts", "judge", "outcomes", "sink", "trainer", "rollout"]
    heights = page.evaluate(  # in one go: the drawing is made anew every two seconds
        "(ids) => ids.map((id) => document.querySelector(`g[data-node=${id}] rect`).getBoundingClientRect().top)", order
    )
    assert heights == sorted(heights)


def test_the_page_says_that_the_server_is_gone_and_recovers(open_page: Open, factory: Factory) -> None:
    with Dashboard(factory) as first:
        page = open_page(at=first)
        port = first.port
    page.watch.expected += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"]
    page.wait_for_selector("#live[data-tone=bad]")
    assert "Server gone" in page.locator("#live").inner_text()
    with Dashboard(factory, port=port):
        page.wait_for_selector("#live[data-tone=ok]", timeout=30_000)
        page.wait_for_selector("#case-list table")
        page.context.close()


def test_an_empty_factory_says_what_to_do_next(open_page: Open, base: Path, kafka: str, tmp_path: Path) -> None:
    empty = Factory(tmp_path, kafka, f"empty{uuid.uuid4().hex[:8]}.", base)
    empty.make_topics()
    with Dashboard(empty) as running:
        page = open_page(at=running)
        page.wait_for_selector("#passing .empty")
        for panel in EMPTY:
            expect(page.locator(f"#{panel} .empty")).to_have_count(1)
        assert "goldstream" in page.locator("#passing").inner_text()
        page.context.close()


def test_without_kafka_the_gold_set_is_still_shown(open_page: Open, factory: Factory) -> None:
    with Dashboard(factory, "kafka.bootstrap_servers=127.0.0.1:9") as running:
        page = open_page(at=running)
        page.wait_for_selector("#problems .problem")
        assert "Kafka" in page.locator("#live").inner_text()
        page.wait_for_selector("#funnel .step")
        assert "Gold rows\n4" in page.locator("#overview").inner_text()
        page.context.close()
