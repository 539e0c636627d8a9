"""Which openings are kept, by their tokens alone; the states are empty here."""

from collections.abc import Sequence

import pytest

from service.encoders.packed import Prefix
from service.encoders.prefixes import MIN_TOKENS, PrefixCache

INSTRUCTION = list(range(100, 130))
EOS = 2


def query(*ids: int, instruction: Sequence[int] = INSTRUCTION) -> list[int]:
    return [*instruction, *ids, EOS]


def run(cache: PrefixCache, *texts: list[int]) -> list[int]:
    """What an encoder does with a batch; returns from how many tokens each text continues, 0 for a whole one."""
    kept = cache.learn(texts)
    for index, length in kept.items():
        cache.keep(texts[index], Prefix(length))
    rest = [index for index in range(len(texts)) if index not in kept]
    found = dict(zip(rest, cache.find([texts[index] for index in rest]), strict=True))
    return [prefix.length if (prefix := found.get(index)) else 0 for index in range(len(texts))]


def test_learn_second_text_of_an_instruction_keeps_it_and_the_others_continue():
    cache = PrefixCache(100)

    assert run(cache, query(1), query(3), query(4, 5)) == [30, 0, 30]
    assert run(cache, query(6)) == [30]


def test_learn_the_second_text_may_come_with_a_later_batch():
    cache = PrefixCache(100)

    assert [run(cache, query(word)) for word in (1, 3, 4)] == [[0], [0], [30]]


def test_learn_a_text_that_comes_again_is_no_shared_opening():
    cache = PrefixCache(100)

    assert [cache.learn([query(1)]) for _ in range(5)] == [{}] * 5


def test_learn_texts_that_share_a_little_keep_nothing():
    cache = PrefixCache(100)
    few = list(range(MIN_TOKENS - 1))

    assert cache.learn([query(word, instruction=few) for word in (50, 51, 52)]) == {}


def test_learn_documents_below_one_title_keep_nothing():
    title = list(range(100, 110))

    assert PrefixCache(100).learn([[*title, *[word] * 80, EOS] for word in range(4)]) == {}


def test_learn_no_opening_that_is_longer_than_the_cache():
    assert PrefixCache(29).learn([query(1), query(3)]) == {}


def test_find_a_text_that_is_a_kept_opening_leaves_its_last_token_to_calculate():
    cache = PrefixCache(100)
    run(cache, query(1), query(3))

    assert run(cache, INSTRUCTION) == [29]


def test_find_queries_that_begin_alike_stay_with_the_others():
    cache = PrefixCache(100)
    run(cache, query(7, 8, 1), query(7, 8, 3))
    texts = [query(7, 8, 4), query(9), query(7, 10)]

    assert cache.find([texts[0]])[0].length == 32
    first, *others = cache.find(texts)
    assert first.length == 30
    assert all(each is first for each in others)


def test_learn_a_long_common_beginning_of_queries_is_an_opening_of_its_own():
    cache = PrefixCache(100)
    run(cache, query(1), query(3))
    more = list(range(200, 200 + MIN_TOKENS))

    assert run(cache, query(*more, 1), query(*more, 3), query(*more, 4), query(5)) == [38, 0, 38, 30]
    assert cache.take_figures().held_tokens == 38  # the shorter one is a cut of it


def test_learn_an_instruction_that_ends_a_little_further_on_needs_witnesses():
    """Two instructions part three tokens before their end, and the parting was seen first."""
    cache = PrefixCache(100)
    german, french = ([*INSTRUCTION, language, 60, 61] for language in (50, 51))
    run(cache, query(1, instruction=german), query(3, instruction=french))

    lengths = [run(cache, query(word, instruction=german))[0] for word in range(10, 15)]

    assert lengths == [30, 30, 0, 33, 33]


def test_keep_the_opening_unused_for_longest_goes_first():
    cache = PrefixCache(65)
    first, second, third = ([start, *INSTRUCTION[1:]] for start in (1000, 1001, 1002))
    for instruction in (first, second):
        run(cache, query(1, instruction=instruction), query(3, instruction=instruction))
    assert run(cache, query(4, instruction=first)) == [30]

    run(cache, query(1, instruction=third), query(3, instruction=third))

    found = cache.find([query(5, instruction=each) for each in (first, second, third)])
    assert [prefix.length if prefix else 0 for prefix in found] == [30, 0, 30]
    figures = cache.take_figures()
    assert (figures.evictions, figures.held_tokens) == (1, 60)


def test_keep_an_opening_that_was_dropped_is_kept_again_by_its_next_text():
    cache = PrefixCache(40)
    other = [1000, *INSTRUCTION[1:]]
    run(cache, query(1), query(3))
    run(cache, query(1, instruction=other), query(3, instruction=other))

    assert [run(cache, query(word)) for word in (4, 5)] == [[0], [30]]


def test_keep_a_load_of_documents_leaves_what_is_kept():
    cache = PrefixCache(100)
    run(cache, query(1), query(3))

    for start in range(2000, 4000):
        cache.learn([[*range(start, start + 20), EOS]])

    assert run(cache, query(4)) == [30]


def test_learn_an_instruction_is_found_though_documents_come_between_its_queries():
    cache = PrefixCache(100)
    cache.learn([query(1)])

    cache.learn([[*range(start, start + 200), EOS] for start in range(2000, 4000)])

    assert cache.learn([query(3)]) == {0: 30}


def test_learn_remembers_no_more_than_some_megabytes():
    cache = PrefixCache(100)

    for start in range(0, 4000, 2):  # each beginning with several texts
        cache.learn([[*range(start, start + 900), word, EOS] for word in range(2)])

    held = [opening for recent in cache._recent.values() for opening in recent]
    assert sum(map(len, held)) == cache._recent_bytes
    assert 2**21 < cache._recent_bytes <= 2**22


def test_take_figures_counts_since_the_last_time():
    cache = PrefixCache(100)
    run(cache, query(1), query(3), query(4), query(5))

    first, second = cache.take_figures(), cache.take_figures()

    assert (first.hits, first.misses, first.saved_tokens, first.held_tokens) == (3, 1, 90, 30)
    assert (second.hits, second.misses, second.saved_tokens, second.held_tokens) == (0, 0, 0, 30)


@pytest.mark.parametrize("limit", [8, 50, 100])
def test_keep_holds_no_more_than_the_limit_and_counts_right(limit):
    cache = PrefixCache(limit)
    for start in range(30):
        instruction = [start, *INSTRUCTION[: 8 + start % 20]]
        run(cache, query(1, instruction=instruction), query(3, instruction=instruction))

    held = cache.take_figures().held_tokens

    assert held <= limit
    assert held == sum(prefix.length for prefix in cache._prefixes.values())
    assert sorted(cache._prefixes) == sorted(each for all_of in cache._by_beginning.values() for each in all_of)
