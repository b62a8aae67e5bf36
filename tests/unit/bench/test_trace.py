"""Traces in CSV: what is taken, and what is refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfs.bench.trace import read_trace
from latentfs.errors import InvalidArgumentError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "day.csv"


def test_objects_are_numbered_as_they_appear(path: Path) -> None:
    path.write_text("10,901,500\n10.5,7,20\n12,901,500\n12,cat,1\n")
    trace = read_trace(path)
    assert list(trace.times_s) == [10, 10.5, 12, 12]
    assert list(trace.objects) == [0, 1, 0, 2]
    assert (len(trace), trace.object_count) == (4, 3)


@pytest.mark.parametrize(
    "text",
    [
        "time,object,size\n1,a,5\n2,b,6\n",
        "\ufefftime, object id\n\n1,a\n  \n2,b",
        '1,"a",5,next,7\r\n 2 , "b" ,\r\n',
        "1.0,a,x\n2e0,b,\n",
    ],
)
def test_headers_blank_lines_quotes_and_other_columns_make_no_difference(
    path: Path, text: str
) -> None:
    path.write_text(text, "utf-8")
    trace = read_trace(path)
    assert (list(trace.times_s), list(trace.objects)) == ([1, 2], [0, 1])


def test_names_are_compared_as_text_of_any_bytes(path: Path) -> None:
    path.write_bytes(b"1,7,0\n2,07,0\n3,\xff\xfe,0\n4,\xff\xfe,0\n5,7.0,0\n")
    assert list(read_trace(path).objects) == [0, 1, 2, 2, 3]


def test_only_the_first_requests_are_read(path: Path) -> None:
    path.write_text("time,object\n1,a\n2,b\nnonsense\n")
    trace = read_trace(path, requests_max=2)
    assert (len(trace), trace.object_count) == (2, 2)


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("1,a\nsoon,b\n", 2, "'soon'"),
        ("soon,b,5\n", 1, "'soon'"),
        ("time,object\n\nagain,b\n", 3, "'again'"),
        ("nan,a\n", 1, "'nan'"),
        ("1,a\n1e999,a\n", 2, "'1e999'"),
        ("-1,a\n", 1, "'-1'"),
        ("1_0,a\n", 1, "'1_0'"),
        ("\u0661,a\n", 1, r"'\u0661'"),
        ("5,a\n4.5,a\n", 2, "'4.5'"),
        ("1\n", 1, "'1'"),
        ("1,a\n2, ,5\n", 2, "'2,,5'"),
        ("1\ta\t5\n2\tb\t5\n", 2, r"'2\tb\t5'"),
        ("1,a\n2,\x1b[2J\n3\n", 3, "'3'"),
        (f"1,a\n2,{'x' * 70_000}\n", 2, None),
    ],
)
def test_a_wrong_line_is_named(path: Path, text: str, line: int, value: str | None) -> None:
    path.write_text(text, "utf-8")
    with pytest.raises(InvalidArgumentError) as raised:
        read_trace(path)
    message = str(raised.value)
    assert message.startswith(f"{path}, line {line}: ")
    assert value is None or value in message
    assert message.isprintable()
    assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize("text", ["", "\n\n", "time,object,size\n"])
def test_without_requests_it_is_no_trace(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match="there is no request in it"):
        read_trace(path)


@given(st.binary(max_size=400))
def test_whatever_a_file_holds_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        trace = read_trace(path)
    except InvalidArgumentError:
        return
    assert len(trace.times_s) == len(trace.objects)
    assert set(trace.objects) == set(range(trace.object_count))
