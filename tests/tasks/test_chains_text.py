"""Texts of the chains task: the tokenizer corpus and uninformative step traces."""

from __future__ import annotations

import numpy as np
import pytest

from rapo_jax.tasks import TASKS, chains
from rapo_jax.tasks.chains_agents import applicable, read_situation, step_text
from rapo_jax.tasks.chains_text import random_retrieved_step
from rapo_jax.text.protocol import parse_step, render_result
from rapo_jax.text.tokens import build_tokenizer, load_tokens

TASK = TASKS["chains"]


@pytest.fixture(scope="module")
def tokens(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder, TASK.corpus(world), vocab_size=1024)
    return load_tokens(folder)


def spelled(tokens, text):
    return [tokens.bytes_V[i].decode() for i in tokens.encode_protocol(text)]


def test_each_name_and_word_is_one_token_behind_its_space_and_in_no_other_form(world, tokens):
    spoken = [*chains.RELATIONS, *chains.OPERATIONS, "age", "done"]
    for word in [*world.entities, *world.chains, *spoken]:
        for text in (f"of {word} ?", f"<think> {word}</think>", f"\\boxed{{ {word}}}"):
            assert f" {word}" in spelled(tokens, text)
        assert word.encode() not in tokens.bytes_V


def test_each_number_up_to_99_is_one_token_wherever_it_stands(tokens):
    for number in map(str, range(100)):
        for text in (f"age {number} ;", f"print({number}*2)", f"\\boxed{{ {number}}}"):
            assert number in spelled(tokens, text)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        ("heir", ["<think>", " heir", "</think>", "<search>", " {}", " heir", "</search>"]),
        ("done", ["<think>", " done", "</think>", "<answer>", "\\boxed{", " {}", "}", "</answer>"]),
    ],
)
def test_a_step_is_its_tags_and_its_words_a_token_each(world, tokens, decision, expected):
    for entity in world.entities:
        shown = [token.replace(" {}", f" {entity}") for token in expected]
        assert spelled(tokens, step_text(decision, entity)) == shown


def test_a_result_is_its_tags_and_its_words_a_token_each(world, tokens):
    facts = [document for document in TASK.documents(world) if " age " not in document]
    for first, second in zip(facts, facts[1:], strict=False):
        shown = spelled(tokens, render_result(f"{first} ; {second}"))
        words = [*first.split(), ";", *second.split()]
        assert shown == ["<result>", *(f" {word}" for word in words), "</result>"]


def test_each_word_of_the_system_prompt_is_one_token(tokens):
    assert [token.strip() for token in spelled(tokens, TASK.system_prompt)] == (
        TASK.system_prompt.split()
    )


def test_the_corpus_is_the_same_each_time(world):
    assert TASK.corpus(world) == TASK.corpus(world)


@pytest.mark.parametrize("number", [False, True])
def test_a_random_retrieved_step_is_about_the_experts_entities_and_true(world, number):
    documents = set(TASK.documents(world))
    decisions = set()
    printed = {
        f"print({expression.format(age)})": str(chains.apply_operation(operation, age))
        for operation, expression in chains.OPERATIONS.items()
        for age in chains.AGES
    }
    for seed in range(200):
        trace = random_retrieved_step(world, np.random.default_rng(seed), number=number)
        decision = TASK.decision(trace)
        decisions.add(decision)
        shown = "Dorim age 37" if number else "Dorim heir Kavel"
        assert applicable(decision, read_situation("", render_result(shown)))
        written, _, observed = trace.partition("<result> ")
        step = parse_step(written)
        if step.kind == "search":
            entity, relation = step.content.split()
            assert entity in world.starts["expert"]
            assert relation == decision
            found = observed.removesuffix("</result>")
            assert found in documents
            assert found.startswith(step.content)
        elif step.kind == "python":
            assert observed.removesuffix("</result>") == printed[step.content]
        else:
            assert (decision, observed) == ("done", "")
    expected = chains.OPERATIONS if number else (*chains.RELATIONS, "age")
    assert decisions == {*expected, "done"}


def test_an_injected_step_fits_the_present_value(world):
    inject = TASK.injector(world, probability=1.0)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        number = TASK.decision(inject(render_result("Dorim age 37 ; Dorim rival Lapi"), rng))
        computed = TASK.decision(inject(render_result("74"), rng))
        entity = TASK.decision(inject(render_result("Dorim rival Lapi ; Dorim age 37"), rng))
        assert number in {*chains.OPERATIONS, "done"}
        assert computed == "done"
        assert entity in {*chains.RELATIONS, "age", "done"}


def test_an_injector_retrieves_with_its_probability_and_never_after_the_last_call(world):
    rng = np.random.default_rng(0)
    sometimes = TASK.injector(world, probability=0.3)
    history = render_result("Dorim rival Lapi")
    hits = sum(sometimes(history, rng) is not None for _ in range(2000))
    assert hits / 2000 == pytest.approx(0.3, abs=0.04)
    always = TASK.injector(world, probability=1.0)
    assert always(history * chains.LONGEST_CHAIN, rng) is None
