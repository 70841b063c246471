"""Comments, and where nodes end."""

from __future__ import annotations

from obuild.spec import sexp
from obuild.spec.annotate import annotate
from obuild.spec.sexp import List


def test_annotate_gives_comments_and_the_ends_of_nodes() -> None:
    text = '; one \n(a #;(b ; in\n) "c" #;#;d e #| f |#) ; two\r\n'
    found = annotate(text)
    assert found.node == sexp.parse(text)
    assert [remark.text for remark in found.remarks] == ["; one", "#;(b ; in\n)", "#;#;d e", "#| f |#", "; two"]
    assert all(text[remark.start :].startswith(remark.text) for remark in found.remarks)
    assert isinstance(found.node, List)
    spans = [found.span(node) for node in (found.node, *found.node.items)]
    assert [text[start:end] for start, end in spans] == [text[7:-8], "a", '"c"']
