import pytest

from service.errors import InvalidInputError
from service.store.base import Document
from service.store.points import check_document


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": [{"b": 2**63}]}, r"metadata.a\[0\].b: an integer beyond 64 bits"),
        ({"a": -(2**63) - 1}, "metadata.a: an integer beyond 64 bits"),
        ({"a": {"b": [1, float("inf")]}}, r"metadata.a.b\[1\]: inf is not a finite number"),
        ({"a": "\ud800"}, "a lone surrogate"),
        ({"\ud800": 1}, "a lone surrogate"),
    ],
)
def test_document_that_no_store_could_keep_is_refused_with_the_place(metadata: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_document(Document(id="d", text="t", metadata=metadata))


def test_document_that_can_be_kept_passes() -> None:
    metadata = {"a": [2**63 - 1, -(2**63), 0.5, None, True, "naïve", {"ключ": []}]}
    check_document(Document(id="d", text="t", metadata=metadata))
