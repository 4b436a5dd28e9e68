"""The commands views, occlude and group."""

import json

import numpy as np
from PIL import Image

from tests.conftest import draw_noise, square_mask
from vitviz_hf import open_image
from vitviz_hf.cli.main import main


def test_the_commands_write_their_folders(tiny_folder, photo, labelled, tmp_path, capsys):
    photo.save(tmp_path / "p.png")
    Image.fromarray((square_mask(photo) * 255).astype(np.uint8)).save(tmp_path / "m.png")
    model, common = str(tiny_folder("vit")), ["--device", "cpu", "--out"]
    picture = ["--image", str(tmp_path / "p.png"), "--mask", str(tmp_path / "m.png")]

    assert main(["views", model, *picture, *common, str(tmp_path / "views")]) == 0
    assert main(["occlude", model, *picture, "--seeds", "1", "--grid", "4", *common, str(tmp_path / "occlude")]) == 0
    options = ["--compose", "tiles", "--limit", "2", "--variants", "clean"]
    assert main(["group", model, str(labelled), *options, *common, str(tmp_path / "group")]) == 0

    for name in ("views", "occlude", "group"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["experiment"] == name and (name == "group" or manifest["image"] == "p.png")
        assert (tmp_path / name / "table.csv").is_file()
    capsys.readouterr()
    for arguments, message in [
        (["views", model, *picture, *common, str(tmp_path / "views")], "already exists"),
        (["views", model, *picture, "--patches", "9,9", *common, str(tmp_path / "x")], "outside the grid"),
        (["views", model, *picture, "--levels", "7", *common, str(tmp_path / "x")], "levels go from 0"),
        (["views", str(tiny_folder("swin")), *picture, *common, str(tmp_path / "x")], "several patch grids"),
        (["occlude", model, *picture, "--filter", "99", *common, str(tmp_path / "x")], "there are 32 filters"),
        (["group", model, str(labelled), "--compose", "none", *common, str(tmp_path / "x")], "no instance masks"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_mask_of_another_size_is_refused(tiny_folder, photo, tmp_path, capsys):
    photo.save(tmp_path / "p.png")
    Image.new("L", (5, 5)).save(tmp_path / "m.png")
    command = ["views", str(tiny_folder("vit")), "--image", str(tmp_path / "p.png"), "--mask", str(tmp_path / "m.png")]

    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    assert "the mask has 5x5 pixels, the picture 80x60" in capsys.readouterr().err


def test_opened_pictures_and_masks_come_from_strangers(tmp_path):
    (tmp_path / "m.png").write_bytes(b"no picture")
    draw_noise(1).save(tmp_path / "p.png")

    assert (
        main(
            [
                "views",
                "builtin",
                "--image",
                str(tmp_path / "p.png"),
                "--mask",
                str(tmp_path / "m.png"),
                "--out",
                str(tmp_path / "x"),
            ]
        )
        == 2
    )
    assert open_image(tmp_path / "p.png").size == (49, 40)
