"""Server-sent events, line by line."""

from collections.abc import AsyncIterator

from serai.client.sse import Message, Parser, lines, messages


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


async def test_only_a_line_feed_ends_a_line() -> None:
    """JSON leaves U+2028 and U+0085 in a text as they are, and bytes come in any pieces."""
    data = '{"message":"a\u2028b\x85c\x0bd ü"}'

    async def chunks() -> AsyncIterator[bytes]:
        for byte in f"id: 1\r\ndata: {data}\r\n\r\ndata: half".encode():
            yield bytes([byte])

    assert [message async for message in messages(lines(chunks()))] == [Message(data, "1")]
