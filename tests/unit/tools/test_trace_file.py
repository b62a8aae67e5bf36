"""Any trace in libCacheSim's CSV form is read as it means it; what can't be true is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cachesim.trace import Trace
from cachesim.trace_file import CsvForm, parse_form, read_trace, write_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentfs.errors import InvalidArgumentError

CLOUD_PHYSICS = """version,time,op,size,lbn
1,5633898,2a,512,42932745
1,5633898,2a,512,42932746
1,5633899,2a,6656,40409911
1,5641098,2a,512,42932745
"""
"""The form of libCacheSim's example cloudPhysicsIO.csv."""
CLOUD_PHYSICS_FORM = "time-col=2, obj-id-col=5, obj-size-col=4"

UNLESS_TOLD = CsvForm()


def read(folder: Path, text: str | bytes, form: CsvForm = UNLESS_TOLD, **units: float) -> Trace:
    path = folder / "some.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trace(path, form=form, **units)


def requests_of(trace: Trace) -> list[tuple[float, int, int]]:
    sizes = trace.pixel_bytes[trace.objects]
    return list(zip(trace.times_s.tolist(), trace.objects.tolist(), sizes.tolist(), strict=True))


@pytest.mark.parametrize("rest", ["", ", delimiter=,, has-header=true", ", obj-id-is-num=true"])
def test_the_example_of_libcachesim_is_read(tmp_path: Path, rest: str) -> None:
    form = parse_form(CLOUD_PHYSICS_FORM + rest)
    trace = read(tmp_path, CLOUD_PHYSICS, form, time_unit_s=1e-6)
    assert trace.name == "some"
    assert trace.times_s == pytest.approx([5.633898, 5.633898, 5.633899, 5.641098])
    assert trace.objects.tolist() == [0, 1, 2, 0]
    assert trace.pixel_bytes.tolist() == [512, 512, 6656]
    assert trace.latent_bytes.tolist() == [32, 32, 416]
    assert trace.kind_names == ("file",)
    assert trace.kinds.tolist() == [0, 0, 0]
    assert trace.render_weights == pytest.approx([0.2, 0.2, 2.6])


def test_latents_are_as_small_as_the_caller_says(tmp_path: Path) -> None:
    trace = read(tmp_path, "0,a,1000\n0,b,3\n", latent_ratio=10.0)
    assert trace.latent_bytes.tolist() == [100, 1]


@pytest.mark.parametrize(
    "text",
    [
        "1,a b,7\n2,c,8\n",
        "\ufeff1,a b,7\n2,c,8\n",
        "1,a b,7\r\n2,c,8",
        "\n1 , a b , 7\n\n2,c,8\n\n",
        "time,id,size\n1,a b,7\n2,c,8\n",
        '1,"a b",7\n2, "c",8\n',
        "1,a b,7,GET,https://example.org/x\n2,c,8,PUT,x\n",
        "1.0\ta b\t7\n2e0\tc\t8\n",
        "1|a b|7\n2|c|8\n",
        "1:a b:7\n2:c:8\n",
        "1,a b,7\n1.5,gone,0\n2,c,8\n",
    ],
)
def test_forms_of_the_same_trace_are_the_same(tmp_path: Path, text: str) -> None:
    assert requests_of(read(tmp_path, text)) == [(1.0, 0, 7), (2.0, 1, 8)]


def test_a_quoted_id_may_have_the_delimiter_and_ends_with_its_line(tmp_path: Path) -> None:
    trace = read(tmp_path, '1,"a,b",7\n2,"a,c",8\n3,"a,b",7\n')
    assert trace.objects.tolist() == [0, 1, 0]
    with pytest.raises(InvalidArgumentError, match=r"line 1: .* has 2 columns"):
        read(tmp_path, '1,"a,7\n2,b,8\n')


def test_ids_are_text_unless_they_are_said_to_be_numbers(tmp_path: Path) -> None:
    text = "1,7,100\n2,007,100\n3,0,100\n4,00,100\n"
    assert read(tmp_path, text).objects.tolist() == [0, 1, 2, 3]
    assert read(tmp_path, text, CsvForm(obj_id_is_num=True)).objects.tolist() == [0, 0, 1, 1]


def test_ids_of_any_bytes_are_told_apart(tmp_path: Path) -> None:
    trace = read(tmp_path, b"1,\xff\x00,7\n2,\xfe\x00,7\n3,\xff\x00,7\n4,\xc3\xa9,7\n5,,7\n")
    assert trace.objects.tolist() == [0, 1, 0, 2, 3]


def test_of_several_sizes_of_an_object_the_largest_is_its_size(tmp_path: Path) -> None:
    trace = read(tmp_path, "1,a,100\n2,b,5\n3,a,300\n4,a,200\n")
    assert trace.pixel_bytes.tolist() == [300, 5]


def test_a_file_without_times_or_sizes_replays(tmp_path: Path) -> None:
    form = CsvForm(time_col=None, obj_id_col=1, obj_size_col=None)
    trace = read(tmp_path, "a\nb\na\n", form)
    assert requests_of(trace) == [(0.0, 0, 1_500_000), (1.0, 1, 1_500_000), (2.0, 0, 1_500_000)]


def test_a_header_can_be_said_to_be_there_or_not(tmp_path: Path) -> None:
    assert read(tmp_path, "1,a,2\n3,b,4\n", CsvForm(has_header=True)).requests == 1
    with pytest.raises(InvalidArgumentError, match="line 1: the size in column 3 is 'size'"):
        read(tmp_path, "time,id,size\n3,b,4\n", CsvForm(has_header=False))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no request in it; give a file"),
        ("\n\n", "there is no request in it"),
        ("time,id,size\n", "line 1: there is no request in it"),
        ("1,a,0\n", "there is no request in it"),
        ("1,a,5\n2,a\n", "line 2: '2,a' has 2 columns by the delimiter ','; name columns"),
        ("1;a;5\n", "line 1: '1;a;5' has 1 columns"),
        ("-1,a,5\n", "line 1: the time in column 1 is '-1'; give a number of 0 or more"),
        ("1,a,5\n\nnan,a,5\n", "line 3: the time in column 1 is 'nan'"),
        ("nan,a,5\n", "line 1: the time in column 1 is 'nan'"),
        ("1,a,5\ninf,a,5\n", "line 2: the time in column 1 is 'inf'"),
        ("1,a,5\n1e999,a,5\n", "line 2: the time in column 1 is '1e999'"),
        ("1,a,5\n1_0,a,5\n", "line 2: the time in column 1 is '1_0'"),
        ("1,a,5\n\u0662,a,5\n", "line 2: the time in column 1 is '\\\\u0662'"),
        ("1,a,5\n,a,5\n", "line 2: the time in column 1 is ''"),
        ("1,a,5\n2s,a,5\n", "line 2: the time in column 1 is '2s'"),
        ("2,a,5\n1,a,5\n", "line 2: the time '1' is before the one above, 2.0; sort the lines"),
        ("1,a,-5\n", "line 1: the size in column 3 is '-5'; give whole bytes"),
        ("1,a,nan\n", "line 1: the size in column 3 is 'nan'"),
        ("1,a,5.5\n", "line 1: the size in column 3 is '5.5'"),
        ("1,a,0x10\n", "line 1: the size in column 3 is '0x10'"),
        ("1,a,4294967296\n", "line 1: the size in column 3 is '4294967296'"),
        (f"1,a,{'9' * 5000}\n", "line 1: the size in column 3 is '9{60}...'; give"),
        ("1,a,\n", "line 1: the size in column 3 is ''"),
        ("1,a,5\n2," + "x" * 70_000, "line 2: .* goes on for more than 65536 characters"),
        ("\x00\x01\x02\x7fELF\n", "line 1: .*ELF' has 1 columns"),
    ],
)
def test_a_line_that_cannot_be_true_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason) as refused:
        read(tmp_path, text)
    assert str(tmp_path / "some.csv") in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def test_an_id_that_is_no_number_is_refused_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="line 2: the id in column 2 is 'a'"):
        read(tmp_path, "1,1,5\n2,a,5\n", CsvForm(obj_id_is_num=True))


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"none\.csv can't be read \(No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(InvalidArgumentError, match=r"can't be read \(Is a directory\)"):
        read_trace(tmp_path)
    trace = read(tmp_path, "1,a,5\n")
    with pytest.raises(InvalidArgumentError, match=r"can't be written \(Is a directory\)"):
        write_trace(trace, tmp_path)


@pytest.mark.parametrize(
    ("units", "reason"),
    [
        ({"latent_ratio": 0.0}, "latent_ratio is 0.0"),
        ({"latent_ratio": float("nan")}, "latent_ratio is nan"),
        ({"time_unit_s": -1.0}, "time_unit_s is -1.0"),
        ({"time_unit_s": float("inf")}, "time_unit_s is inf"),
        ({"time_unit_s": 1e300}, "the last time, 1e\\+100, is infinite"),
    ],
)
def test_units_that_make_no_sense_are_refused(
    tmp_path: Path, units: dict[str, float], reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        read(tmp_path, "1e100,a,5\n", UNLESS_TOLD, **units)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (
            "time-col=2, obj-id-col=5, obj-size-col=4, delimiter=,, has-header=true",
            CsvForm(2, 5, 4, ",", True),
        ),
        ("time-col=1,obj-id-col=2,obj-size-col=3,delimiter=,", CsvForm(1, 2, 3, ",")),
        (
            "time-col=1,obj-id-col=2,obj-size-col=3,delimiter=,,obj-id-is-num=1",
            CsvForm(1, 2, 3, ",", None, True),
        ),
        ("time_field=1, OBJ_ID_FIELD=2, size-col=3, header=no", CsvForm(1, 2, 3, None, False)),
        (r"obj-id-col=2, delimiter=\t", CsvForm(None, 2, None, "\t")),
        ("delimiter=;,obj-id-col=1", CsvForm(None, 1, None, ";")),
        (r"delimiter=\,,obj-id-col=1", CsvForm(None, 1, None, ",")),
    ],
)
def test_forms_are_written_as_for_libcachesim(text: str, form: CsvForm) -> None:
    assert parse_form(text) == form


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no column of ids"),
        ("time-col=1", "names no column of ids; add obj-id-col=NUMBER"),
        ("obj-id-col=2, colour=red", "'colour=red' can't be used; give time-col"),
        ("obj-id-col=2, obj-id-field=3", "'obj-id-field=3' can't be used; .* each once"),
        ("obj-id-col=2, nonsense", "'nonsense' can't be used"),
        ("obj-id-col=two", "a column is 'two'"),
        ("obj-id-col=-2", "a column is '-2'"),
        ("obj-id-col=0", "the columns are 0; .* counted from 1"),
        ("obj-id-col=2, time-col=2", "the columns are 2, 2"),
        ("obj-id-col=2, has-header=perhaps", "'perhaps' is neither true nor false"),
        ("obj-id-col=2, delimiter=;;", "the delimiter is ';;'"),
        ("obj-id-col=2, delimiter=5", "the delimiter is '5'"),
    ],
)
def test_forms_that_mean_nothing_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        parse_form(text)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    pixel_bytes = draw(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=8))
    objects = draw(st.lists(st.integers(0, len(pixel_bytes) - 1), min_size=1, max_size=40))
    length = len(objects)
    times = st.floats(0.0, 1e300) | st.integers(0, 10).map(float)
    return Trace(
        name="drawn",
        times_s=np.sort(np.array(draw(st.lists(times, min_size=length, max_size=length)))),
        objects=np.array(objects),
        pixel_bytes=np.array(pixel_bytes),
        latent_bytes=np.ones(len(pixel_bytes), dtype=np.int64),
        kinds=np.zeros(len(pixel_bytes), dtype=np.int64),
        kind_names=("drawn",),
        render_weights=np.ones(len(pixel_bytes)),
    )


@given(trace=traces())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read_back(tmp_path: Path, trace: Trace) -> None:
    """Requests are the same, with objects numbered in order of their first request."""
    path = tmp_path / "drawn.csv"
    write_trace(trace, path)
    numbers: dict[int, int] = {}
    expected = [
        (time_s, numbers.setdefault(index, len(numbers)), size)
        for time_s, index, size in requests_of(trace)
    ]
    assert requests_of(read_trace(path)) == expected
    assert requests_of(read_trace(path, form=CsvForm(1, 2, 3, ",", True, True))) == expected


@given(text=st.binary(max_size=80) | st.text('0123456789.,-e\n"a ', max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_trace_or_refused(tmp_path: Path, text: str | bytes) -> None:
    with suppress(InvalidArgumentError):
        assert read(tmp_path, text).requests >= 1


def test_a_trace_that_the_form_cannot_hold_is_not_written(tmp_path: Path) -> None:
    trace = read(tmp_path, "0,a,5\n")
    path = tmp_path / "out.csv"
    for wrong in (
        replace(trace, times_s=trace.times_s - 1),
        replace(trace, pixel_bytes=trace.pixel_bytes + 2**32),
    ):
        with pytest.raises(InvalidArgumentError, match=r"begins at .* and has pictures of up to"):
            write_trace(wrong, path)
    assert not path.exists()
