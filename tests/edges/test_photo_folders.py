"""Every file of a folder of photos is taken or named, whatever it is called and whatever lies around it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cleanup.edges.photo_folders import PhotoFolder, find_photos, name_from_id
from cleanup.edges.pictures import read_picture
from cleanup.errors import FacebankError
from cleanup.people import make_person_id


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"x")
    return folder


def names_of(found: PhotoFolder, folder: Path) -> list[tuple[str, str]]:
    return [(person.person_id, path.relative_to(folder).as_posix()) for person, path in found.photos]


def test_folders_in_a_persons_folder_are_walked_and_every_file_is_a_photo_until_it_is_read(tmp_path: Path) -> None:
    make(tmp_path, "amy/b.webp", "amy/2019/summer/a.HEIC", "amy/no suffix", "raj/notes.txt", "penny/")

    found = find_photos(tmp_path)

    assert names_of(found, tmp_path) == [
        ("amy", "amy/2019/summer/a.HEIC"), ("amy", "amy/b.webp"), ("amy", "amy/no suffix"), ("raj", "raj/notes.txt"),
    ]  # fmt: skip
    assert [person.person_id for person in found.people] == ["amy", "penny", "raj"]


def test_what_systems_and_storage_leave_is_left_out_at_every_level(tmp_path: Path) -> None:
    odd = ["@eaDir/x.jpg", "__MACOSX/amy/._a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg", "lost+found/",
           "System Volume Information/x", "Thumbs.db", ".DS_Store", ".hidden/a.jpg"]  # fmt: skip
    make(tmp_path, "amy/a.jpg", *odd, *(f"amy/{name}" for name in odd), "amy/desktop.ini", "amy/2019/@eaDir/a.jpg")

    found = find_photos(tmp_path)

    assert names_of(found, tmp_path) == [("amy", "amy/a.jpg")] and not found.refused
    assert len(found.left_out) == 2 * len(odd) + 2


def test_what_is_nobodys_photo_is_named_with_what_to_do(tmp_path: Path) -> None:
    make(tmp_path / "photos", "amy/a.jpg", "raj/b.jpg", "loose.jpg", "amy/line\nbreak.jpg", "amy/\udcff.jpg")
    (tmp_path / "photos" / "amy" / "everybody").symlink_to("..")

    found = find_photos(tmp_path / "photos")

    told = {path.name: why for path, why in found.refused}
    assert set(told) == {"loose.jpg", "line\nbreak.jpg", "\udcff.jpg", "everybody"}
    assert "put it into one" in told["loose.jpg"] and "not followed" in told["everybody"]
    assert names_of(found, tmp_path / "photos") == [("amy", "amy/a.jpg"), ("raj", "raj/b.jpg")]
    (tmp_path / "flat").mkdir()
    with pytest.raises(FacebankError, match="no photos found.*; 1 files lie in no person's folder"):
        find_photos(make(tmp_path / "flat", "me.jpg"))


@pytest.mark.parametrize(
    ("folder", "person_id", "name"),
    [
        ("Lisa Rinna", "lisa-rinna", "Lisa Rinna"),
        ("Jose\u0301", "jose", "Jos\u00e9"),
        ("lin-manuel", "lin-manuel", "Lin Manuel"),
        ("Søren Łukasz Weiß", "soren-lukasz-weiss", "Søren Łukasz Weiß"),
        ("O'Brien, Conan (1)", "o-brien-conan-1", "O'Brien, Conan (1)"),
        ("\u5c71\u7530", "person-x5f34cd83", "\u5c71\u7530"),
    ],
)
def test_a_name_as_a_folder_gives_an_id_and_a_name(tmp_path: Path, folder: str, person_id: str, name: str) -> None:
    found = find_photos(make(tmp_path, f"{folder}/a.jpg"))

    assert [(p.person_id, p.name) for p in found.people] == [(person_id, name)]


def test_an_id_made_of_a_name_is_of_nobody_else() -> None:
    names = [
        "山田",
        "鈴木",
        "山田 Taro",
        "鈴木 Taro",
        "Anna " * 40,
        "Anna " * 41,
        "Unknown 1",
        "!",
        "?",
        "Иван",
        "Ivan",
    ]

    assert len({make_person_id(name) for name in names}) == len(names)
    assert make_person_id("JOSE\u0301") == make_person_id("jos\u00e9") == "jose"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["José", "jose"], "José and .*jose give one person id, jose"),
        (["Lisa Rinna", "lisa-rinna"], "Lisa Rinna and .*lisa-rinna give one person id"),
        (["Jos\u00e9", "Jose\u0301"], "give one person id"),
        (["Lisa", "lisa"], "give one person id"),
        (["two\tnames"], r"two\\tnames: the folder's name is the person's name or id, but .* U\+0009"),
        (["turned\u202e"], r"turned\\u202e: the folder's name"),
        ([" "], "but a person's name is empty"),
        (["unknown-0001"], "the form that unknown people get"),
    ],
)
def test_a_folder_that_stands_for_nobody_in_particular_is_refused(
    tmp_path: Path, folders: list[str], message: str
) -> None:
    with pytest.raises(FacebankError, match=message) as caught:
        find_photos(make(tmp_path, *(f"{folder}/a.jpg" for folder in folders)))

    assert str(caught.value).isprintable()


def test_a_photo_that_is_no_plain_file_neither_hangs_nor_fills_memory(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "secret.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "away.jpg").symlink_to("nowhere")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))

    told = {name: read_picture(tmp_path / f"{name}.jpg")[1] for name in ("fifo", "device", "away", "socket", "link")}

    assert told["fifo"] == told["device"] == told["socket"] == "no plain file"
    assert told["away"] == "cannot be read (No such file or directory)" and told["link"] == "not a readable picture"


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FacebankError, match="no such folder"):
        find_photos(tmp_path / "none")
    with pytest.raises(FacebankError, match="no photos found"):
        find_photos(tmp_path)


def test_names_are_made_from_ids() -> None:
    assert name_from_id("lin-manuel_miranda") == "Lin Manuel Miranda"
