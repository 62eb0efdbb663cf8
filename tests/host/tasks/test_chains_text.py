from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rapo_jax.host.protocol import TAGS, parse_step
from rapo_jax.host.tasks import TASKS, chains
from rapo_jax.host.tasks.chains_agents import applicable, read_situation

TASK = TASKS["chains"]


@pytest.fixture(scope="module")
def tokenizer(world):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(TAGS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TASK.corpus(world), trainer)
    return tokenizer


def test_each_name_word_and_number_is_one_token_behind_a_tag_and_behind_a_space(world, tokenizer):
    spoken = [*world.entities, *world.chains, *chains.RELATIONS, *chains.OPERATIONS, "age", "done"]
    for word in [*spoken, *map(str, range(100))]:
        for text in (word, f" {word}", f"<think>{word}</think>", f"\\boxed{{{word}}}"):
            assert word in [token.lstrip("Ġ") for token in tokenizer.encode(text).tokens], text


def test_each_word_of_the_system_prompt_is_one_token(tokenizer):
    tokens = tokenizer.encode(TASK.system_prompt).tokens
    assert [token.lstrip("Ġ") for token in tokens] == TASK.system_prompt.split()


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
        trace = TASK.random_retrieved_step(world, np.random.default_rng(seed), number=number)
        decision = TASK.decision(trace)
        decisions.add(decision)
        shown = "Dorim age 37" if number else "Dorim heir Kavel"
        assert applicable(decision, read_situation("", f"<result>{shown}</result>"))
        own, _, observed = trace.partition("<result>")
        step = parse_step(own)
        if step.kind == "search":
            entity, relation = step.content.split()
            assert entity in world.starts["expert"]
            assert relation == decision
            asked, distractor = observed.removesuffix("</result>").split(" ; ")
            assert {asked, distractor} <= documents
            assert asked.startswith(step.content)
            assert distractor.startswith(entity) and distractor != asked
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
        number = TASK.decision(inject("<result>Dorim age 37 ; Dorim rival Lapi</result>", rng))
        computed = TASK.decision(inject("<result>74</result>", rng))
        entity = TASK.decision(inject("<result>Dorim rival Lapi ; Dorim age 37</result>", rng))
        assert number in {*chains.OPERATIONS, "done"}
        assert computed == "done"
        assert entity in {*chains.RELATIONS, "age", "done"}


def test_an_injector_retrieves_with_its_probability_and_never_after_the_last_call(world):
    rng = np.random.default_rng(0)
    sometimes = TASK.injector(world, probability=0.3)
    history = "<result>Dorim rival Lapi</result>"
    hits = sum(sometimes(history, rng) is not None for _ in range(2000))
    assert hits / 2000 == pytest.approx(0.3, abs=0.04)
    always = TASK.injector(world, probability=1.0)
    assert always(history * chains.LONGEST_CHAIN, rng) is None
