"""Server-sent events, line by line."""

from serai.client.sse import Message, Parser


def read(text: str) -> list[Message]:
    parser = Parser()
    return [message for line in text.split("\n") if (message := parser.feed(line)) is not None]


def test_a_message_ends_with_an_empty_line() -> None:
    assert read("id: 7\nevent: vm.state\ndata: {}\n\n") == [Message("{}", "7", "vm.state")]


def test_data_lines_are_joined_and_the_id_stays() -> None:
    assert read("id:1\ndata:a\ndata: b\n\ndata:c\n\n") == [Message("a\nb", "1"), Message("c", "1")]


def test_comments_are_signs_of_life() -> None:
    assert read(": hello\n\n") == [Message(None)]


def test_an_unfinished_message_is_dropped() -> None:
    assert read("data: half") == []
