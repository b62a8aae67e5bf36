"""Space that is reserved: taken if there is plenty, given up in pieces, never an error."""

from __future__ import annotations

from pathlib import Path

from latentfs.store.disk_reserve import DiskReserve

SIZE_BYTES = 1 << 20


def test_it_is_given_up_in_pieces_and_made_whole_again(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path, size_bytes=SIZE_BYTES)
    assert not reserve.give_piece()
    reserve.take()
    path = tmp_path / "reserve"
    assert reserve.held_bytes == path.stat().st_size == path.stat().st_blocks * 512 == SIZE_BYTES
    assert reserve.give_piece()
    assert reserve.held_bytes == path.stat().st_size == SIZE_BYTES * 7 // 8
    reserve.take()
    assert reserve.held_bytes == SIZE_BYTES
    assert [reserve.give_piece() for _ in range(9)] == [True] * 8 + [False]
    reserve.remove()
    assert not path.exists()


def test_more_than_half_of_what_is_free_is_not_taken(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path, size_bytes=1 << 60)
    reserve.take()
    assert reserve.held_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_folder_that_somebody_removed_is_no_error(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path, size_bytes=SIZE_BYTES)
    reserve.take()
    (tmp_path / "reserve").unlink()
    assert reserve.give_piece()
    reserve.remove()
    gone = DiskReserve(tmp_path / "gone", size_bytes=SIZE_BYTES)
    gone.take()
    assert gone.held_bytes == 0
    gone.remove()
