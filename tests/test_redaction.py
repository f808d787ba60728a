"""Redaction: what is taken out of a text, what must stay, and that no text can make it slow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from schemas.case import Case, Message, Source
from schemas.errors import SettingsError, SetupError
from schemas.settings import Redact
from streams.admission.redaction import Redactor, load_analyzer

REDACTOR = Redactor(Redact())


def case(*contents: str, **fields: Any) -> Case:
    source = Source(cluster="c", topic="logs", partition=0, offset=0)
    messages = tuple(Message("user", content) for content in contents)
    return Case(case_id="x", task="toy", split="train", source=source, **({"messages": messages} | fields))


def redacted(text: str) -> str:
    return REDACTOR.redact(case(text)).prompt()


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("write to Jane.Doe+x@mail.example.co.uk.", "write to <EMAIL_1>."),
        ("(müller@häuser.example)", "(<EMAIL_1>)"),
        ("mailto:a@b.example?subject=x", "mailto:<EMAIL_1>?subject=x"),
        ("call (202) 555-0143 today", "call <PHONE_1> today"),
        ("fax 202-555-0143, 202.555.0143", "fax <PHONE_1>, <PHONE_1>"),
        ("1-800-555-0199", "<PHONE_1>"),
        ("+1 202 555 0143", "<PHONE_1>"),
        ("+49 30 1234567 or +442079460958", "<PHONE_1> or <PHONE_2>"),
        ("+49 (0)30 1234567", "<PHONE_1>"),
        ("London 020 7946 0958, Berlin 030 12345678", "London <PHONE_1>, Berlin <PHONE_2>"),
        ("Paris 01 42 68 53 00", "Paris <PHONE_1>"),
        ("tel: 5550143", "tel: <PHONE_1>"),
        ("Telefon Nr. 87654321", "Telefon Nr. <PHONE_1>"),
        ("call me back at 2025550143", "call me back at <PHONE_1>"),
        ("202\u2011555\u20110143", "<PHONE_1>"),
        ("card 4111 1111 1111 1111 exp 12/28", "card <CARD_1> exp 12/28"),
        ("4111-1111-1111-1111 and 378282246310005", "<CARD_1> and <CARD_2>"),
        ("cvv 12 4111 1111 1111 1111", "cvv 12 <CARD_1>"),
        ("SSN 123-45-6789", "SSN <SSN_1>"),
        ("social security number: 123 45 6789; ssn 123456789", "social security number: <SSN_1>; ssn <SSN_1>"),
        ("from 203.0.113.9:8080", "from <IP_1>:8080"),
        ("fe80::1ff:fe23:4567:890a is up", "<IP_1> is up"),
        ("at 2001:0db8:0000:0000:0000:ff00:0042:8329: denied", "at <IP_1>: denied"),
        ("2001:db8::ff00:42:8329 = 2001:db8:0:0:0:ff00:42:8329", "<IP_1> = <IP_1>"),
    ],
)
def test_personal_values_become_placeholders(text: str, becomes: str) -> None:
    assert redacted(text) == becomes


@pytest.mark.parametrize(
    "text",
    [
        "Metformin 500 mg twice daily, 1000 mg at night; 2 x 250 mg, 0.5-1.0 mg/kg, 5000 IU, 10 000 units.",
        "BP 120/80, 118/76, 132/85. HR 72 76 80. Na 140, K 4.2, Cl 102; 140 102 24 18 0.9 4.2 138",
        "Seen 2026-11-21, 21.11.2026, 11/21/2026, 21-11-26, 20261121, 2026-11-21 10:30, 2026-11-21 08 12 16.",
        "At 08:00, 10:30-11:45, 0800 1200 1600, 08 12 16 20 24, 2026-11-21T10:30:00.123Z, 10:30:45:500.",
        "Since 11/2026 1030, from 2019-2023 2024-2025.",
        "Version 1.2.3.4, v10.20.30.40, release 2026.11.21.1, Python 3.11.7, kernel 6.1.0-18, firmware 4.12.108.2",
        "ISBN 978-3-16-148410-0, NDC 0777-3105-02 and 50580-449-05, order 1234567890, trace 1763666400123",
        "1763666400 1763666401, 1,234,567.89, 1.234.567,89, 37.774929, -122.419416, 1e10",
        "card 4111 1111 1111 1112 fails its check, 1234 5678 9012 3456 was never issued, 000-12-3456 neither",
        "Visit code 123 45 6789, std::vector a::b ::1 00:1a:2b:3c:4d:5e 127.0.0.1 0.0.0.0 255.255.255.0 999.1.1.1",
        "npm install left-pad@1.3.0, @handle, user@localhost, 5 @ 3.50",
        "550e8400-e29b-41d4-a716-446655440000, 0x0123456789abcdef, A1234567890",
        "The cell count was 4500000; text 12 was read; ring 2 is loose; call on 2026-11-21.",
        "",
    ],
)
def test_doses_dates_times_versions_and_identifiers_stay(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("Amsterdam 020 123 4567, mobile 06 12345678", ("NL",)),
        ("Tokyo 03-1234-5678, or 090-1234-5678", ("JP",)),
        ("Sydney (02) 9374 4000, mobile 0412 345 678", ("AU",)),
        ("Madrid 912 34 56 78, or 612 34 56 78", ("ES",)),
        ("Warszawa 22 123 45 67, or 512 345 678", ("PL", "DE")),
    ],
)
def test_numbers_count_as_their_country_writes_them_where_the_country_is_named(
    text: str, regions: tuple[str, ...]
) -> None:
    found = Redactor(Redact(phone_regions=regions)).redact(case(text)).prompt()
    assert not any(c.isdigit() for c in found.replace("PHONE_1", "").replace("PHONE_2", ""))


def test_a_country_that_is_not_named_keeps_its_numbers_and_one_that_is_none_is_refused() -> None:
    spanish = "Madrid 912 34 56 78"
    assert redacted(spanish) == spanish
    with pytest.raises(SettingsError, match="phone_regions names XX"):
        Redactor(Redact(phone_regions=("XX", "DE")))


def test_a_number_has_one_placeholder_at_home_and_abroad() -> None:
    assert redacted("06 12345678 is +31 6 12345678") == "<PHONE_1> is <PHONE_1>"


def test_the_same_value_has_the_same_placeholder_wherever_it_stands() -> None:
    call = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"to":"JANE@x.example","n":1}'}}
    messages = (
        Message("system", "Help jane@x.example."),
        Message("user", [{"type": "text", "text": "I am Jane@X.example, not jo@x.example"}]),
        Message("assistant", None, tool_calls=[call]),
        Message("tool", "sent to jo@x.example", tool_call_id="call-1"),
    )
    found = REDACTOR.redact(
        case(
            messages=messages,
            production_answer="jo@x.example has it",
            tools=({"function": {"description": "asks jo@x.example"}},),
            production_tool_calls=(call,),
            feedback={"comment": "jane@x.example is happy"},
        )
    )
    assert found.placeholders == ("EMAIL_1", "EMAIL_2")
    assert b"@x.example" not in msgspec.json.encode(found).lower()
    assert found.messages[1].text() == "I am <EMAIL_1>, not <EMAIL_2>"
    assert found.messages[3] == Message("tool", "sent to <EMAIL_2>", tool_call_id="call-1")
    assert found.production_answer == "<EMAIL_2> has it"
    assert found.feedback == {"comment": "<EMAIL_1> is happy"}
    (redacted_call,) = found.messages[2].tool_calls or []
    assert redacted_call["id"] == "call-1"
    assert msgspec.json.decode(redacted_call["function"]["arguments"]) == {"to": "<EMAIL_1>", "n": 1}


def test_arguments_of_a_tool_stay_json_where_a_bare_number_is_a_card() -> None:
    call = {"function": {"arguments": '{"card": 4111111111111111, "cents": 1200}'}}
    found = REDACTOR.redact(case("pay", production_tool_calls=(call,)))
    arguments = found.production_tool_calls[0]["function"]["arguments"]
    assert msgspec.json.decode(arguments) == {"card": "<CARD_1>", "cents": 1200}


def test_an_answer_in_json_stays_json_and_its_keys_say_what_a_number_is() -> None:
    answer = '{"phone": "5550143", "id": 20261121, "cards": [4111111111111111]}'
    found = REDACTOR.redact(case("{not json, tel 5550143", production_answer=answer))
    decoded = msgspec.json.decode(found.production_answer or "")
    assert (decoded["phone"], decoded["cards"]) == ("<PHONE_1>", ["<CARD_1>"])
    assert found.prompt() == "{not json, tel <PHONE_1>"
    kept = REDACTOR.redact(case("q", production_answer='{"phone": "5550143", "id": 20261121}')).production_answer
    assert kept == '{"phone": "<PHONE_1>", "id": 20261121}'


def test_seeds_and_limits_are_no_cards() -> None:
    numbers = {"seed": 4111111111111111, "maximum": 4111111111111111}
    found = REDACTOR.redact(case("jo@x.example", params=numbers, tools=({"function": numbers},)))
    assert (found.params, found.tools) == (numbers, ({"function": numbers},))


def test_placeholders_the_product_wrote_itself_are_never_given_to_another_value() -> None:
    assert redacted("<EMAIL_1> and <EMAIL_2> wrote to jo@x.example") == "<EMAIL_1> and <EMAIL_2> wrote to <EMAIL_3>"


def test_only_the_kinds_that_are_asked_for_are_taken_out() -> None:
    text = "jo@x.example, 202-555-0143, 203.0.113.9"
    assert Redactor(Redact(kinds=("phone",))).redact(case(text)).prompt() == "jo@x.example, <PHONE_1>, 203.0.113.9"
    untouched = case(text)
    assert Redactor(Redact(kinds=())).redact(untouched) is untouched


def test_a_case_without_personal_values_is_left_as_it_is() -> None:
    plain = case("Metformin 500 mg since 2026-11-03")
    assert REDACTOR.redact(plain) is plain


class Names:
    """Knows two people, and answers as Presidio's analyzer does."""

    def analyze(self, text: str, language: str, entities: Any, score_threshold: float) -> list[Any]:
        assert (language, list(entities)) == ("en", ["PERSON"])
        names = ("Jane  Roe", "Jane Roe", "JANE ROE", "Ann", "<EMAIL_1", "EMAIL_1>")
        spans = [(text.find(name), name) for name in names]
        found = [SimpleNamespace(start=at, end=at + len(name), score=0.9) for at, name in spans if at >= 0]
        return [name for name in found if name.score >= score_threshold]


def test_names_come_from_the_analyzer_after_all_else_and_never_cut_a_placeholder() -> None:
    redactor = Redactor(Redact(kinds=("email", "name")), Names())
    found = redactor.redact(case("Jane Roe (jane@x.example) met Ann", "JANE ROE left", "Jane  Roe"))
    assert [m.text() for m in found.messages] == ["<NAME_1> (<EMAIL_1>) met <NAME_2>", "<NAME_1> left", "<NAME_1>"]


def test_names_without_presidio_name_what_to_install() -> None:
    try:
        import presidio_analyzer  # noqa: F401
    except ImportError:
        with pytest.raises(SetupError, match=r"pip install '\.\[presidio\]'"):
            load_analyzer(Redact(kinds=("name",)))
    else:
        with pytest.raises(SetupError, match="no such spaCy model"):
            load_analyzer(Redact(kinds=("name",), name_model="no_such_model"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "unit",
    ["1 ", "1.", "1-", "(1)", "4111 ", "+49 30 12 34 ", "012 345 678 ", "call 1-2-3-4-5-6 ", "12345678901234567890",
     "1.2.3.4.", "0", "tel ", "+", "a@", "a@a.", "ab:", ":"],
)  # fmt: skip
def test_a_megabyte_made_to_hurt_takes_time_in_proportion(unit: str) -> None:
    """Quadratic work on this much text would take hours; the limit is the test's own."""
    redacted(unit * (1_000_000 // len(unit)))
