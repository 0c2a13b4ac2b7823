"""As much of protobuf as the stand-in needs to read an ONNX file; standard library, Python 3.6."""


def fields(data):
    """(number, value) of a protobuf message: numbers as ints, contents as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        elif key & 7 == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            size = 8 if key & 7 == 1 else 4
            value, at = data[at : at + size], at + size
        if at > len(data):
            raise ValueError("cut off")
        yield key >> 3, value


def _varint(data, at):
    value = place = 0
    while True:
        if at >= len(data):
            raise ValueError("cut off")
        value |= (data[at] & 0x7F) << place
        place, at = place + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def one_of(data, *path):
    """The first value down a path of field numbers, or None."""
    for wanted in path:
        data = next((value for number, value in fields(data) if number == wanted), None)
        if data is None:
            return None
    return data
