"""What is compared takes turns, and a report is written for people and for programs."""

import json

from app.tools import rounds


def test_each_is_measured_in_every_round_and_first_in_its_turn():
    calls: list[tuple[str, int]] = []

    def measure(name, number):
        calls.append((name, number))
        return len(calls)

    figures = rounds.by_turns("abc", 4, measure)
    orders = ["".join(name for name, n in calls if n == number) for number in range(4)]
    assert orders == ["abc", "bca", "cab", "abc"]
    assert figures == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_a_report_is_a_text_and_its_rows(tmp_path, capsys):
    rounds.write_report(tmp_path, "speed", [{"case": "c"}], ["heading", "c"])
    assert json.loads((tmp_path / "speed.json").read_text()) == [{"case": "c"}]
    assert (tmp_path / "speed.txt").read_text() == "heading\nc\n"
    assert capsys.readouterr().out == f"report: {tmp_path}/speed.txt, speed.json\n"
