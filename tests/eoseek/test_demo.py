import pytest

from eoseek.demo import standard_library_documents


@pytest.fixture(scope="module")
def documents():
    return standard_library_documents()


def test_demo_holds_at_least_two_thousand_distinct_public_documents(documents):
    assert len(documents) >= 2000
    assert len({document.id for document in documents}) == len({document.text for document in documents})
    assert not any(part.startswith("_") for document in documents for part in document.id.split("."))
    assert min(len(document.text) for document in documents) >= 20


def test_demo_merge_has_its_signature_and_text(documents):
    (merge,) = [document for document in documents if document.id == "heapq.merge"]
    assert merge.title == "heapq.merge(*iterables, key=None, reverse=False)"
    assert merge.text.startswith("Merge multiple sorted inputs into a single sorted output.\n\nSimilar to")
    assert merge.metadata == {"module": "heapq", "kind": "function"}


@pytest.mark.parametrize(
    ("document_id", "title", "kind"),
    [
        ("json.encoder.JSONEncoder.default", "json.encoder.JSONEncoder.default(o)", "method"),
        ("str.casefold", "str.casefold()", "method"),
        ("math.isclose", "math.isclose(a, b, *, rel_tol=1e-09, abs_tol=0.0)", "function"),
        ("collections.deque", "class collections.deque", "class"),
        ("array.array.append", "array.array.append(v, /)", "method"),
        ("textwrap", "textwrap", "module"),
    ],
)
def test_demo_covers_python_and_builtin_code(documents, document_id, title, kind):
    (found,) = [document for document in documents if document.id == document_id]
    assert (found.title, found.metadata["kind"]) == (title, kind)


def test_demo_twice_gives_the_same_in_order_of_text_owners_behind_what_examples_ask_for(documents):
    assert standard_library_documents() == documents
    modules = [document.metadata["module"] for document in documents]
    first = modules.index("builtins")
    assert list(dict.fromkeys(modules[:first])) == ["heapq", "email.utils", "time", "subprocess", "decimal", "datetime"]
    ids = [document.id for document in documents[first:]]
    assert ids == sorted(ids)
