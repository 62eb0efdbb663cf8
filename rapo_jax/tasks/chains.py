"""The tiny task: chains of synthetic facts. Its world, questions and documents.

A question is an opaque word and an entity, such as 'who is the zemlo of Dorim ?'. The word denotes
a *chain* of decisions: relations to look up one after the other with the search tool, and for
number words finally the attribute `age` and an arithmetic operation for the python tool. Entities,
facts and words are generated from a seed. Start entities of the splits are disjoint, so a trace of
another split holds no fact for the present question: only its decision transfers. The chains are
not held out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rapo_jax.tasks.schema import SPLITS, Question
from rapo_jax.tasks.synthetic import invent

RELATIONS = ("mentor", "rival", "friend", "heir")
ATTRIBUTE = "age"
OPERATIONS = {"double": "{}*2", "older": "{}+7", "younger": "{}-9", "half": "{}//2"}
DONE = "done"
AGES = range(10, 50)
KINDS = ("one_hop", "two_hop", "number", "hidden", "hidden_number")
HIDDEN_KINDS = ("hidden", "hidden_number")
LONGEST_CHAIN = 4
SYSTEM_PROMPT = "use tools ; retrieve may help"
SENTENCE_WORDS = tuple("who what is the of print boxed search python answer".split())

Chain = tuple[str, ...]


@dataclass(frozen=True)
class World:
    """All facts, words and questions. Only tools and answers may use `facts` and `ages`."""

    seed: int
    starts: dict[str, tuple[str, ...]]
    """Split -> the entities that its questions start from; disjoint."""
    facts: dict[tuple[str, str], str]
    ages: dict[str, int]
    chains: dict[str, Chain]
    kinds: dict[str, str]
    """Word -> its group, one of KINDS."""
    habits: dict[str, Chain]
    """Hidden word -> a wrong decision for each place of its chain: a misconception."""

    @property
    def entities(self) -> tuple[str, ...]:
        return tuple(self.ages)

    def answer(self, word: str, start: str) -> str:
        """The entity or number that the chain of `word` leads to from `start`."""
        value: str | int = start
        for decision in self.chains[word]:
            if decision == ATTRIBUTE:
                value = self.ages[str(value)]
            elif decision in OPERATIONS:
                value = apply_operation(decision, int(value))
            else:
                value = self.facts[str(value), decision]
        return str(value)


def make_world(
    *,
    seed: int,
    n_entities: int,
    n_train: int,
    n_eval: int,
    two_hop: int,
    number: int,
    hidden: int,
    hidden_number: int,
) -> World:
    """Generates a world; the same arguments always give the same one.

    Of `n_entities`, `n_train` start training questions, `n_eval` held-out ones, and the rest those
    of the off-policy agent. The last four arguments are the numbers of words of each group.
    """
    n_expert = n_entities - n_train - n_eval
    if min(n_train, n_eval, n_expert) < 1 or n_entities < len(RELATIONS) + 1:
        raise ValueError(
            f"task.chains.n_entities={n_entities}: needs at least {len(RELATIONS) + 1}, and more "
            f"than n_train + n_eval = {n_train} + {n_eval}; the rest start the expert's questions"
        )
    rng = np.random.default_rng([seed, 0x0C4A1])
    chains_by_kind = _choose_chains(
        rng, two_hop=two_hop, number=number, hidden=hidden, hidden_number=hidden_number
    )
    n_words = sum(map(len, chains_by_kind.values()))
    taken = (*RELATIONS, ATTRIBUTE, *OPERATIONS, DONE, *SENTENCE_WORDS, *SYSTEM_PROMPT.split())
    names = invent(rng, n_entities + n_words, taken=taken)
    entities = [name.capitalize() for name in names[:n_entities]]
    words = iter(names[n_entities:])

    facts = {}
    for index, entity in enumerate(entities):
        others = rng.choice(n_entities - 1, size=len(RELATIONS), replace=False)
        for relation, other in zip(RELATIONS, others, strict=True):
            facts[entity, relation] = entities[other + (other >= index)]
    ages = {entity: int(rng.integers(AGES.start, AGES.stop)) for entity in entities}

    chains: dict[str, Chain] = {}
    kinds: dict[str, str] = {}
    for kind, group in chains_by_kind.items():
        for chain in group:
            word = next(words)
            chains[word], kinds[word] = chain, kind
    cuts = {"train": (0, n_train), "eval": (n_train, n_train + n_eval)}
    cuts["expert"] = (n_train + n_eval, n_entities)
    starts = {split: tuple(entities[cuts[split][0] : cuts[split][1]]) for split in SPLITS}
    hidden_words = [word for word, kind in kinds.items() if kind in HIDDEN_KINDS]
    habits = {word: _choose_habits(chains[word], turn) for turn, word in enumerate(hidden_words)}
    return World(seed, starts, facts, ages, chains, kinds, habits)


def _choose_habits(chain: Chain, turn: int) -> Chain:
    """For each place up to LONGEST_CHAIN a decision that the chain does not take there.

    The wrong decisions take turns from word to word: none is the habit of most words.
    """
    padded = chain + (DONE,) * (LONGEST_CHAIN - len(chain))
    groups = [tuple(OPERATIONS) if right in OPERATIONS else RELATIONS for right in padded]
    wrong = [[x for x in group if x != right] for group, right in zip(groups, padded, strict=True)]
    return tuple(options[(turn + place) % len(options)] for place, options in enumerate(wrong))


def _choose_chains(
    rng: np.random.Generator, *, two_hop: int, number: int, hidden: int, hidden_number: int
) -> dict[str, list[Chain]]:
    """Distinct chains for the words of each group; operations and lengths take turns.

    The first two relations of hidden chains take turns too: no pair occurs a second time before
    each occurred once. Then the most frequent decision after a relation is not the answer.
    """

    def hops(length: int) -> list[Chain]:
        return list(itertools.product(RELATIONS, repeat=length))

    def shuffled(chains: list[Chain]) -> list[Chain]:
        return [chains[i] for i in rng.permutation(len(chains))]

    def check(key: str, count: int, most: int) -> None:
        if not 0 <= count <= most:
            raise ValueError(f"task.chains.{key}={count}: there are only {most} different chains")

    def numbers(key: str, looked_up: list[Chain], count: int) -> list[Chain]:
        check(key, count, len(OPERATIONS) * len(looked_up))
        operations = list(OPERATIONS)
        chosen = []
        for turn in range(count):
            lap, place = divmod(turn, len(looked_up))
            operation = operations[(place + lap) % len(operations)]
            chosen.append((*looked_up[place], ATTRIBUTE, operation))
        return chosen

    beginnings = shuffled(hops(2))

    def begun_in_turn(length: int, count: int, first_turn: int) -> list[Chain]:
        check("hidden", count, len(hops(length)))
        left = {beginning: shuffled(hops(length - 2)) for beginning in beginnings}
        chosen: list[Chain] = []
        for turn in itertools.count(first_turn):
            if len(chosen) == count:
                return chosen
            beginning = beginnings[turn % len(beginnings)]
            if left[beginning]:
                chosen.append((*beginning, *left[beginning].pop()))
        raise AssertionError("turns do not end")

    check("two_hop", two_hop, len(hops(2)))
    return {
        "one_hop": hops(1),
        "two_hop": shuffled(hops(2))[:two_hop],
        "number": numbers("number", [(), *shuffled(hops(1))], number),
        "hidden": begun_in_turn(LONGEST_CHAIN, hidden, hidden_number),
        "hidden_number": numbers("hidden_number", beginnings, hidden_number),
    }


def apply_operation(operation: str, number: int) -> int:
    """The value of an operation's expression in OPERATIONS, without the python tool."""
    if operation == "double":
        return number * 2
    if operation == "older":
        return number + 7
    return number - 9 if operation == "younger" else number // 2


def questions(world: World, split: str) -> list[Question]:
    """All questions of a split: every word with every start entity of the split."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    return [
        Question(
            id=f"chains-{world.seed}-{word}-{start}",
            question=question_text(world, word, start),
            answers=(world.answer(word, start),),
            kind=kind,
            source="chains",
        )
        for word, kind in world.kinds.items()
        for start in world.starts[split]
    ]


def question_text(world: World, word: str, start: str) -> str:
    """'who is the zemlo of Dorim ?', and 'what' for words whose chain ends in a number."""
    asks = "what" if ATTRIBUTE in world.chains[word] else "who"
    return f"{asks} is the {word} of {start} ?"


def documents(world: World) -> list[str]:
    """The search corpus, one fact a document; other facts of the same entity are distractors."""
    lines = [f"{entity} {relation} {other}" for (entity, relation), other in world.facts.items()]
    return lines + [f"{entity} {ATTRIBUTE} {age}" for entity, age in world.ages.items()]
