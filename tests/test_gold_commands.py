"""The gold set at the command line: one row and its story, a shell, points in time, and views for a plain client."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from click.testing import CliRunner
from ended_cases import AT_MS, ended, land
from tiny import write_manifest

from goldstream import cli
from schemas.case import Charge, Message, Review, Strategy, encode_case
from schemas.errors import GoldError
from schemas.gold import current_watermark
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Settings
from streams.difference import difference
from streams.gold import VIEWS, query, stats
from streams.shell import run_shell
from streams.telling import tell
from streams.watermarks import find_watermark, to_json
from streams.why import find_row

CALL = {"id": "c1", "type": "function", "function": {"name": "dose", "arguments": '{"of": "x"}'}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A gold set: req-0 is gold at once; req-1 was unresolved, and an expert's edit superseded that."""
    settings = Settings(state_dir=str(tmp_path / "state"))
    land(settings.gold, [ended(0), ended(1, "unresolved", reason="rounds_spent")])
    (tmp_path / "then.json").write_text(to_json(current_watermark(settings.gold)))
    edited = ended(
        1,
        epoch=1,
        messages=(Message("user", "dose?"), Message("assistant", None, tool_calls=[CALL])),
        strategy=Strategy("greets first", "answer at once", "m", "s-12ab"),
        review=Review(
            decision="edit", by="ann", at_ms=AT_MS, reason="dose was wrong", judged_passed=False, judged_by="j"
        ),
        charges=(
            Charge(role="judge", model="gpt", cost_usd=0.1, prompt_tokens=5),
            Charge(role="judge", model="gpt", round=1, cost_usd=0.2),
            Charge(role="student", model="q"),
        ),
    )
    land(settings.gold, [edited, ended(2)])
    return settings


def gold(settings: Settings, *command: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(cli, ["gold", *command, "--set", f"state_dir={settings.state}"], input=stdin)


# One row


def test_why_tells_a_rows_whole_story(settings: Settings) -> None:
    told = gold(settings, "why", "req-1").output
    for line in (
        "read from logs[0] at offset 1",
        'calls dose({"of": "x"})',
        "failed, 1 of 2, judged by verifier:toy",
        'major no_greeting at "Hello": it greets',
        "to mend it: leave it out",
        "strategy s-12ab by m:",
        "guardrail: answer at once",
        "expert ann said edit",
        "dose was wrong",
        "the judge j had said: failed on no rule",
        "judge, gpt: 2 calls, 5 tokens, 0.300000 USD",
        "student, q: 1 calls",
        "supersedes: epoch 0, unresolved (rounds_spent)",
    ):
        assert line in told


def test_a_case_on_its_way_and_its_row_are_told_alike() -> None:
    case = ended(5)
    moving = msgspec.json.decode(encode_case(msgspec.structs.replace(case, outcome=None)))
    row = outcome_table([outcome_row(case, 0, 0)]).to_pylist()[0]
    on_topic = tell({"where": "topic gs.refine, not yet in the gold set", "case": moving})
    in_gold = tell({"where": "gold set", "case": row})
    assert on_topic[2] == "now: in flight, on topic gs.refine, not yet in the gold set"
    assert in_gold[2] == "now: gold, in the gold set, since 2026-09-21 14:13:20 UTC, epoch 0"
    assert [*on_topic[:2], *on_topic[3:]] == [*in_gold[:2], *in_gold[3:]]


def test_show_prints_the_row_by_column_and_json_holds_the_attempts(settings: Settings) -> None:
    shown = gold(settings, "show", "req-1").output.splitlines()
    assert "outcome               gold" in shown
    assert "strategy_guardrail    answer at once" in shown
    assert not any(line.startswith("production_answer") for line in shown)  # empty
    row = json.loads(gold(settings, "show", "req-1", "--json").output)
    assert (row["reviewer"], row["attempts"][0]["violations"][0]["hinge"]) == ("ann", "Hello")


def test_a_row_as_it_was_before_it_was_superseded(settings: Settings, tmp_path: Path) -> None:
    told = gold(settings, "why", "req-1", "--as-of", str(tmp_path / "then.json")).output
    assert "now: unresolved (rounds_spent)" in told
    assert "ann" not in told


def test_an_unknown_id_says_where_else_to_look(settings: Settings) -> None:
    with pytest.raises(GoldError, match="goldstream case ID"):
        find_row(settings, "nobody")


def test_control_characters_of_a_model_do_not_reach_the_terminal(settings: Settings) -> None:
    steering = ended(3)
    attempt = msgspec.structs.replace(steering.attempts[1], text="\x1b[2J42\nmore")
    land(settings.gold, [msgspec.structs.replace(steering, attempts=(steering.attempts[0], attempt))])
    assert "\x1b" not in gold(settings, "why", "req-3").output + gold(settings, "show", "req-3").output


# Points in time


def test_every_view_is_as_it_was_at_a_watermark(settings: Settings, tmp_path: Path) -> None:
    then = find_watermark(settings, str(tmp_path / "then.json"))
    assert query(settings.gold, "SELECT case_id, outcome FROM outcomes ORDER BY 1", then)[1] == [
        ("req-0", "gold"),
        ("req-1", "unresolved"),
    ]
    assert stats(settings.gold, then)["outcomes"] == {"gold": 1, "unresolved": 1}
    assert stats(settings.gold, find_watermark(settings, "start"))["cases"] == 0
    assert stats(settings.gold)["outcomes"] == {"gold": 3}


def test_a_partition_the_watermark_does_not_name_had_nothing(settings: Settings, tmp_path: Path) -> None:
    land(settings.gold, [ended(9)], partition=1)
    then = find_watermark(settings, str(tmp_path / "then.json"))
    assert query(settings.gold, "SELECT count(*) FROM landed", then)[1] == [(2,)]


def adapter(settings: Settings, base: Path, task: str, version: str, watermark: dict[int, int]) -> None:
    folder = settings.adapters / task / version
    folder.mkdir(parents=True)
    write_manifest(folder, base, version, task=task, watermark=watermark)


def test_an_adapter_names_the_gold_it_was_trained_on(settings: Settings, base: Path) -> None:
    adapter(settings, base, "scribe", "v0007-abcdef12", {0: 2})
    for name in ("7", "v0007", "v0007-abcdef12", "scribe/7"):
        assert find_watermark(settings, name) == {0: 2}
    assert json.loads(gold(settings, "stats", "--as-of", "7", "--json").output)["cases"] == 2
    adapter(settings, base, "support", "v0007-99999999", {0: 1})
    assert find_watermark(settings, "support/v0007") == {0: 1}
    with pytest.raises(GoldError, match="scribe/v0007-abcdef12, support/v0007-99999999"):
        find_watermark(settings, "7")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ('{"0": 99}', "offset 99 of partition 0 is not in this gold set, which ends before 4"),
        ('{"0": -1}', "offset -1 of partition 0"),
        ('{"zero": 1}', "holds no watermark"),
        ("[1]", "holds no watermark"),
        ("{", "holds no watermark"),
    ],
)
def test_a_watermark_that_cannot_be_is_refused(settings: Settings, tmp_path: Path, held: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(held)
    with pytest.raises(GoldError, match=message):
        find_watermark(settings, str(tmp_path / "bad.json"))


def test_a_name_that_is_nothing_says_what_is_expected(settings: Settings) -> None:
    for name in ("8", "v0001-abcdef", "yesterday", "../../etc"):
        with pytest.raises(GoldError, match="neither a file, nor an adapter"):
            find_watermark(settings, name)


def test_diff_counts_what_came_and_what_was_superseded(settings: Settings, tmp_path: Path) -> None:
    found = json.loads(gold(settings, "diff", str(tmp_path / "then.json"), "--json").output)
    assert (found["added"], found["superseded"]) == (1, 1)
    assert found["became"] == [{"task": "scribe", "was": "unresolved", "now": "gold", "cases": 1}]
    changes = {row.pop("outcome"): row for row in found["changes"]}
    assert changes["gold"] == {"task": "scribe", "before": 1, "added": 1, "superseded": 0, "instead": 1, "after": 3}
    assert changes["unresolved"]["after"] == 0
    assert "1 rows superseded" in gold(settings, "diff", str(tmp_path / "then.json")).output


def test_what_was_redriven_and_ended_within_the_two_watermarks_is_added_once(settings: Settings) -> None:
    found = difference(settings, {}, current_watermark(settings.gold))
    assert (found.added, found.superseded) == (3, 0)
    assert [(row.outcome, row.added, row.after) for row in found.changes] == [("gold", 3, 3)]


def test_diff_wants_the_earlier_watermark_first(settings: Settings, tmp_path: Path) -> None:
    result = gold(settings, "diff", "now", str(tmp_path / "then.json"))
    assert "the first watermark is later than the second in partition 0" in str(result.exception)


# The shell


def test_the_shell_runs_statements_over_lines_and_an_error_does_not_end_it(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = (
        "SELECT ';' AS a,\n -- not; yet\n count(*) AS n\nFROM gold;\n\nSELEC 1;\n.nonsense\nDROP VIEW gold;\nFROM cost;"
    )
    failed = run_shell(settings.gold, settings.state / "history", as_json=True, stdin=io.StringIO(typed))
    out, err = capsys.readouterr()
    assert json.loads(out[: out.index("]") + 1]) == [{"a": ";", "n": 3}]
    assert "scribe" in out[out.index("]") :]
    assert failed == 3
    assert "syntax error" in err
    assert "'.nonsense' is no command" in err
    assert "a DROP statement does more than read" in err


def test_the_shell_lists_views_and_columns_and_ends_at_quit(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    run_shell(settings.gold, settings.state / "h", stdin=io.StringIO(".help\n.tables\n.schema cost\n.quit\nFROM gold;"))
    out = capsys.readouterr().out
    assert ".schema VIEW" in out
    assert "\nrgt_pairs\n" in out
    assert "cost_per_case_usd" in out
    assert "req-0" not in out


def test_sql_piped_into_the_command_sets_the_exit_code(settings: Settings, tmp_path: Path) -> None:
    asked = gold(settings, "shell", "--as-of", str(tmp_path / "then.json"), stdin="SELECT 6 * count(*) AS n FROM gold")
    assert (asked.exit_code, "6" in asked.output) == (0, True)
    assert gold(settings, "shell", stdin="SELECT nothing;").exit_code == 1


_AT_A_TERMINAL = """
import os, pty, select, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    told = ["-X", "faulthandler", "-m", "goldstream", "gold", "shell", "--set", sys.argv[1]]
    os.execv(sys.executable, [sys.executable, *told])
seen = b""
def until(text, press=b""):
    global seen
    os.write(terminal, press)
    tries = 0
    while text not in seen:
        if select.select([terminal], [], [], 5)[0]:
            seen += os.read(terminal, 4096)
        elif tries == 10:
            os.kill(pid, signal.SIGABRT)  # it says where it is
            while select.select([terminal], [], [], 2)[0]:
                try:
                    seen += os.read(terminal, 4096)
                except OSError:
                    break
            sys.exit(f"waited for {text} in {seen}")
        else:
            os.write(terminal, press)  # Ctrl-C between two reads of readline is heard at the next key
            tries += 1
    seen = seen[seen.index(text) + len(text):]
until(b"gold> "); os.write(terminal, b"SELEC;\\n"); until(b"syntax error")
until(b"gold> "); os.write(terminal, b"SELECT\\n")
until(b"... "); until(b"gold> ", press=b"\\x03")
os.write(terminal, b"SELECT 6 * 7 AS answer;\\n"); until(b" 42 ")
until(b"gold> "); os.write(terminal, b"\\x04")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_prompt_on_a_terminal_goes_on_after_an_error_and_after_ctrl_c(settings: Settings) -> None:
    command = [sys.executable, "-c", _AT_A_TERMINAL, f"state_dir={settings.state}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    history = settings.state / "shell_history"
    assert "answer" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


# Exports


def test_a_disk_that_refuses_an_export_is_told_and_the_one_before_stays(settings: Settings, tmp_path: Path) -> None:
    command = ["gold", "export", "--format", "trl", "--set", f"state_dir={settings.state}"]
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(cli, [*command, str(tmp_path / "file" / "out")])
    assert "cannot write the export to" in str(refused.exception)
    assert CliRunner().invoke(cli, [*command, str(tmp_path / "out")]).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    land(settings.gold, [ended(number) for number in range(3, 50)])
    full = ["bash", "-c", 'ulimit -f 4; exec "$@"', "-", sys.executable, "-m", "goldstream"]
    done = subprocess.run([*full, *command, str(tmp_path / "out"), "--force"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot write the export to" in done.stderr
    assert "File too large" in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out", "state", "then.json"]


# Without us


def test_views_sql_works_in_a_process_that_cannot_import_us(settings: Settings, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for part in Path(duckdb.__file__).parent.parent.glob("*duckdb*"):
        (site / part.name).symlink_to(part)
    code = f"""
import sys
sys.path.append({str(site)!r})
for ours in ("streams", "schemas", "pyarrow"):
    try:
        __import__(ours)
    except ImportError:
        continue
    sys.exit(ours + " can be imported")
import duckdb
client = duckdb.connect()
client.execute("SET VARIABLE gold = '{settings.gold}'")
client.execute(open({str(VIEWS)!r}).read())
print(client.execute("SELECT count(*), sum(epoch), count(strategy_guardrail) FROM gold").fetchone())
print(client.execute("SELECT pair, count(*) FROM rgt_pairs GROUP BY ALL ORDER BY ALL").fetchall())
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd="/", timeout=60)
    assert done.stdout.splitlines() == ["(3, 1, 3)", "[('A', 3), ('B', 3)]"], done.stderr


def test_a_gold_set_that_cannot_be_read_has_no_watermark_and_says_why(tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path))
    settings.gold.mkdir()
    (settings.gold / "manifests").write_text("")
    with pytest.raises(GoldError, match="A file lies where a folder should"):
        find_watermark(settings, "now")
