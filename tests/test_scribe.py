"""The scribe task: prompts that read back, a judge that quotes, a refiner that ends, a student that loads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agents.scribe.rules import RULES, SECTIONS, read_note, score, verify
from agents.scribe.scripted import GUARDRAILS, draw_phrasing, refine, strategize, write_draft, write_note
from agents.scribe.transcripts import DRUGS, UNSEEN_DRUGS, Facts, make_transcript, read_transcript
from schemas.case import Message

STUDENT = Path(__file__).parents[1] / "agents" / "scribe" / "student"
TRANSCRIPT = (
    "Man aged 61, seen today. Known gout. Takes metformin 500 mg and insulin 10 units daily. "
    "Reports cough and shortness of breath. Denies fever."
)
FACTS = Facts(
    diagnoses=("gout",),
    medications=(("metformin", "500 mg"), ("insulin", "10 units")),
    symptoms=("cough", "shortness of breath"),
    negated=("fever",),
)
PROMPT = (Message("user", TRANSCRIPT),)
GOOD = "Diagnoses: gout\nMedications: metformin 500 mg, insulin 10 units\nSymptoms: cough, shortness of breath"


def test_a_transcript_reads_back_as_its_facts() -> None:
    assert read_transcript(TRANSCRIPT) == FACTS


@pytest.mark.parametrize("unseen", [False, True])
def test_every_sentence_that_is_made_is_read(unseen: bool) -> None:
    rng = random.Random(4)
    for _ in range(500):
        text, facts = make_transcript(rng, unseen)
        assert verify([Message("user", text)], write_note(facts, draw_phrasing(rng))) == []
        words = {word.strip(".,") for word in text.split()}
        assert {drug for drug, _ in facts.medications} == words & (DRUGS.keys() | UNSEEN_DRUGS.keys())
        assert bool(words & UNSEEN_DRUGS.keys()) <= unseen
        unread = [s for s in text.split(". ")[1:] if read_transcript(s.rstrip(".") + ".") == Facts()]
        assert unread == []


def test_one_seed_gives_one_sequence_of_transcripts() -> None:
    first, second = random.Random(7), random.Random(7)
    assert [make_transcript(first) for _ in range(50)] == [make_transcript(second) for _ in range(50)]


def test_transcripts_hardly_ever_repeat() -> None:
    rng = random.Random(1)
    assert len({make_transcript(rng)[0] for _ in range(5000)}) > 4900


def test_unknown_text_states_nothing() -> None:
    assert read_transcript("Ünïcode \x00 {} no full stop") == read_transcript("") == Facts()


@pytest.mark.parametrize(
    ("old", "new", "rule", "hinge"),
    [
        ("gout", "gout, type 2 diabetes", "stated_diagnoses", "type 2 diabetes"),
        ("metformin 500 mg", "metformin 500", "exact_doses", "metformin 500"),
        ("10 units", "10 mg", "exact_doses", "insulin 10 mg"),
        ("insulin 10 units", "insulin 10 units, warfarin 5 mg", "exact_doses", "warfarin 5 mg"),
        ("breath", "breath, Fever", "no_negated", "Fever"),
        (", shortness of breath", "", "complete", ""),
        ("Diagnoses: gout\n", "", "complete", ""),
        ("Diagnoses", "Here is the note.\nDiagnoses", "complete", "Here is the note."),
        ("cough, shortness of breath", "shortness of breath, cough", "order", "shortness of breath"),
        ("cough", "cough, Cough", "order", "Cough"),
        (GOOD, "\n".join(reversed(GOOD.lower().split("\n"))), "order", "diagnoses:"),
        (": gout", ": gout, none", "none_where_empty", "none"),
    ],
)
def test_each_rule_catches_its_own_fault_and_quotes_it(old: str, new: str, rule: str, hinge: str) -> None:
    answer = GOOD.replace(old, new, 1)
    found = [violation for violation in verify(PROMPT, answer) if violation.rule == rule]
    assert [violation.hinge for violation in found][:1] == [hinge]
    assert hinge in answer
    assert all(violation.why and violation.fix.endswith(".") for violation in found)


def test_an_empty_section_must_say_none() -> None:
    prompt = (Message("user", "Patient of 40. Reports cough."),)
    assert verify(prompt, "Diagnoses: none\nMedications: None.\nSymptoms: cough") == []
    broken = verify(prompt, "Diagnoses:\nMedications: none\nSymptoms: cough")
    assert [violation.rule for violation in broken] == ["none_where_empty"]
    assert score(broken) == 5


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        GOOD.upper().replace("MG", "mg"),
        GOOD.replace(", ", "; "),
        GOOD.replace("500 mg", "500 mg daily").replace("10 units", "(10 units)"),
        GOOD.replace("shortness of breath", "breathlessness") + ".",
        GOOD.replace("\n", "\n\n") + "\n",
    ],
)
def test_several_phrasings_pass(answer: str) -> None:
    assert verify(PROMPT, answer) == []


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            "\n\n",
            "none",
            "I cannot help.",
            "Diagnoses:" * 9000,
            "x, " * 40_000,
            "\udcff\x00é",
            GOOD + "\nok" * 900,
        ),
        *(
            "Diagnoses: ,;,\nMedications: ,\nSymptoms: ;",
            "Diagnoses:\nMedications:\nSymptoms:",
            TRANSCRIPT,
            "Diagno\u017fes: gout",
        ),
    ],
)
def test_garbage_neither_passes_nor_raises(answer: str) -> None:
    violations = verify(PROMPT, answer)
    assert violations
    assert len(violations) <= 8 * len(RULES)
    assert all(violation.hinge in answer for violation in violations)
    assert verify((), answer) or not answer
    refined = refine(PROMPT, answer, violations)
    for _ in range(2):
        refined = refine(PROMPT, refined, verify(PROMPT, refined))
    assert verify(PROMPT, refined) == []


def test_the_refiner_repairs_the_most_severe_rules_first_and_keeps_the_wording() -> None:
    draft = "Diagnoses: Gout; Type 2 diabetes\nMedications: Metformin 500; Insulin 10 units\nSymptoms: Breathlessness"
    once = refine(PROMPT, draft, verify(PROMPT, draft))
    assert once == "Diagnoses: Gout\nMedications: Metformin 500 mg; Insulin 10 units\nSymptoms: Breathlessness"
    assert refine(PROMPT, once, verify(PROMPT, once)).endswith("Symptoms: Cough; Breathlessness")


def test_the_refiner_ends_within_three_rounds() -> None:
    rng, rounds = random.Random(2), []
    for _ in range(300):
        text, facts = make_transcript(rng)
        prompt, draft = [Message("user", text)], write_draft(facts, rng)
        while violations := verify(prompt, draft):
            draft = refine(prompt, draft, violations)
            rounds.append(text)
    spent = [rounds.count(text) for text in set(rounds)]
    assert set(spent) == {1, 2, 3}


def test_a_strategy_holds_nothing_of_the_answer() -> None:
    rng, seen = random.Random(3), set()
    for _ in range(300):
        text, facts = make_transcript(rng)
        prompt, draft = [Message("user", text)], write_draft(facts, rng)
        violations = verify(prompt, draft)
        strategy = strategize(prompt, [draft], violations)
        assert strategy == strategize(prompt, [draft], violations)
        assert all(strategy) == bool(violations)
        items = [item.lower() for line in read_note(write_note(facts)).lines for item in line.items]
        assert not [item for item in items if item in " ".join(strategy).lower()]
        seen.add(strategy[1])
    assert len(seen) > len(GUARDRAILS)


def test_a_scribe_that_obeys_a_rule_does_not_break_it_by_habit() -> None:
    rng = random.Random(5)
    for rule in ("stated_diagnoses", "exact_doses", "no_negated", "none_where_empty"):
        for _ in range(50):
            text, facts = make_transcript(rng)
            violations = verify([Message("user", text)], write_draft(facts, rng, obeyed=rule))
            assert rule not in {violation.rule for violation in violations}


def test_the_kept_student_loads_and_renders_an_empty_think_block() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    chat = [{"role": "user", "content": "Reports cough."}]
    options = {"tokenize": False, "enable_thinking": False}
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, **options)
    assert prompt == "<|im_start|>user\nReports cough.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    answered = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "N"}], **options)
    assert answered == prompt + "N<|im_end|>\n"
    reasoned = [*chat, {"role": "assistant", "content": "N", "reasoning_content": "R"}]
    assert tokenizer.apply_chat_template(reasoned, **options).endswith("<think>\nR\n</think>\n\nN<|im_end|>\n")
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).endswith("assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"
    assert [len(tokenizer.encode(token)) for token in ("<|im_start|>", "<think>", "</think>")] == [1, 1, 1]


def test_the_kept_student_writes_notes_of_three_lines() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    assert 400_000 < model.num_parameters() < 500_000
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    chat = [{"role": "user", "content": TRANSCRIPT}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=100)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [line.split(":")[0] for line in answer.splitlines()] == list(SECTIONS)
