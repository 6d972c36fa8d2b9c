"""Text of others stays on its line."""

from interpreto_mlops.text.terminal import one_line


def test_what_controls_a_terminal_becomes_a_space() -> None:
    assert one_line("reviews\n├─ forged \x1b[31m red\u202e \r\0é 日本") == "reviews ├─ forged  [31m red    é 日本"
