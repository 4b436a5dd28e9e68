"""Tables as markdown, CSV and JSON."""

import csv
import json

from vitviz_hf.experiments.tables import Interval, Table, paper_and_ours


def test_a_table_is_markdown_csv_and_json():
    table = Table(("a|b", "x", "n"), (("p|q", Interval(50.123, 40, 60), None), ("r", 1.5, 3)), ("A note.",))

    assert table.to_markdown().splitlines() == [
        "| a\\|b | x | n |",
        "| --- | --- | --- |",
        "| p\\|q | 50.12 (40.00 to 60.00) | - |",
        "| r | 1.50 | 3 |",
        "",
        "A note.",
    ]
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert rows[0] == {"a|b": "p|q", "x": "50.123", "x low": "40", "x high": "60", "n": ""}
    assert json.loads(table.to_json())["rows"][1] == {"a|b": "r", "x": 1.5, "n": 3}


def test_papers_columns_appear_only_where_the_paper_has_numbers():
    header, cells = paper_and_ours(["x", "y"], [((1.0, None), (2.0, 3.0)), ((None, None), (4.0, 5.0))])

    assert header == ["x, paper", "x, ours", "y"] and cells == [[1.0, 2.0, 3.0], [None, 4.0, 5.0]]
