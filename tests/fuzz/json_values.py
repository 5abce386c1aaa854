"""JSON for the fuzzers: any value, and a place in a document to put it."""

from typing import Any

from hypothesis import strategies as st

# Integers are small: a size of a million asks for a model of that size, and gets it.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.floats(),
    st.sampled_from([0, -0.0, 1e-300, 1e300, "", "no", "3", "llada", "model.safetensors", "../x", "é\x00", "a\nb: c"]),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def replacements(draw: Any, document: Any) -> Any:
    """A copy of a JSON document in which one value, the whole perhaps, is another one or gone."""
    if not isinstance(document, (dict, list)) or not document or not draw(st.integers(0, 6)):
        return draw(VALUES)
    copy: Any = dict(document) if isinstance(document, dict) else list(document)
    place = draw(st.sampled_from(sorted(copy)) if isinstance(copy, dict) else st.integers(0, len(copy) - 1))
    action = draw(st.sampled_from(["replace", "replace", "replace", "remove"]))
    if action == "remove":
        del copy[place]
    else:
        copy[place] = draw(replacements(copy[place]))
    return copy
