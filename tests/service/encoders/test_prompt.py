import pytest

from service.encoders.prompt import Frame, TokenContract
from service.errors import ConfigurationError, InvalidInputError, TextTooLongError
from tests.checkpoints import byte_tokenizer

EOS, BOS = 2, 1


def contract(template: str = "$A </s>", *, max_length: int = 50, **frame: str | bool) -> TokenContract:
    return TokenContract(byte_tokenizer(template), Frame(**frame), max_length=max_length, eos_ids=[EOS])  # type: ignore[arg-type]


def decoded(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids, skip_special_tokens=True)


def test_queries_absent_instruction_is_the_default_and_empty_is_none() -> None:
    tokens = contract(max_length=200, default_instruction="Find it")
    absent, own, none = (
        tokens.queries(["heap"], instruction=instruction).token_ids[0] for instruction in (None, "Rank {x}", "")
    )
    assert decoded(absent) == "Instruct: Find it\nQuery: heap"
    assert decoded(own) == "Instruct: Rank {x}\nQuery: heap"
    assert decoded(none) == "heap"


def test_queries_braces_in_a_query_are_left_alone() -> None:
    tokens = contract(max_length=200, default_instruction="Find it")
    assert decoded(tokens.queries(["{instruction} {query}"]).token_ids[0]).endswith("Query: {instruction} {query}")


def test_queries_instruction_without_a_place_is_refused() -> None:
    tokens = contract(query_template="query: {query}")
    assert decoded(tokens.queries(["heap"], instruction="").token_ids[0]) == "query: heap"
    with pytest.raises(InvalidInputError, match="takes no instruction"):
        tokens.queries(["heap"], instruction="Find it")


def test_documents_title_stands_above_the_text_and_instructions_do_not() -> None:
    tokens = contract(default_instruction="Find it", document_prefix="passage: ")
    with_title, without = tokens.documents([("T", "text"), ("", "text")]).token_ids
    assert decoded(with_title) == "passage: T\n\ntext"
    assert decoded(without) == "passage: text"


def test_documents_too_long_names_count_and_limit() -> None:
    with pytest.raises(TextTooLongError, match=r"input 1 has 61 tokens, the limit is 50.*truncate") as error:
        contract().documents([("", "a"), ("", "a" * 60)])
    assert error.value.extra == {"index": 1, "num_tokens": 61, "max_tokens": 50}


@pytest.mark.parametrize(("template", "prefix"), [("$A </s>", []), ("<s> $A </s>", [BOS])])
def test_documents_truncation_keeps_bos_and_eos(template: str, prefix: list[int]) -> None:
    tokenized = contract(template).documents([("", "a" * 60), ("", "b")], truncate=True)
    cut = tokenized.token_ids[0]
    assert tokenized.truncated == [0]
    assert len(cut) == 50
    assert cut[: len(prefix)] == prefix
    assert cut.count(EOS) == 1
    assert cut[-1] == EOS


def test_documents_at_the_limit_are_whole() -> None:
    assert contract().documents([("", "a" * 49)], truncate=True).truncated == []


def test_special_tokens_in_a_text_are_ordinary_text() -> None:
    ids = contract().documents([("", "end</s>end")]).token_ids[0]
    assert ids.count(EOS) == 1
    assert decoded(ids) == "end</s>end"


def test_special_tokens_of_the_template_stay_special() -> None:
    ids = contract(query_template="<s>{query}").queries(["heap"]).token_ids[0]
    assert ids[0] == BOS


def test_token_ids_get_the_specials_that_are_missing() -> None:
    tokens = contract("<s> $A </s>")
    assert tokens.token_ids([[7, 8], [BOS, 7, 8, EOS]]).token_ids == [[BOS, 7, 8, EOS]] * 2


@pytest.mark.parametrize("token", [-1, 259])
def test_token_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    with pytest.raises(InvalidInputError, match="vocabulary of 259"):
        contract().token_ids([[5, token]])


@pytest.mark.parametrize("template", ["$A", "</s> $A", "$A </s> </s>", "$A <s>"])
def test_contract_without_one_closing_eos_is_refused_with_the_cure(template: str) -> None:
    with pytest.raises(ConfigurationError, match=r"exactly one \[EOS\].*TemplateProcessing"):
        contract(template)


def test_contract_without_eos_is_fine_where_pooling_needs_none() -> None:
    tokens = TokenContract(byte_tokenizer("<s> $A"), Frame(), max_length=10, eos_ids=None)
    assert tokens.documents([("", "a")]).token_ids[0][0] == BOS


def test_contract_limit_below_the_special_tokens_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no room"):
        contract(max_length=1)


def test_contract_lowercase_is_applied_to_whole_prompts() -> None:
    assert decoded(contract(lowercase=True).documents([("Title", "Text")]).token_ids[0]) == "title\n\ntext"
