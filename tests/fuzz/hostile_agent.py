#!/usr/bin/env python3
"""In place of a board's Python: says what an agent says, with the answers of a file.

The file is ``answers.json`` beside this program: the first line's content, and a result for each
method. It is started with the bootstrap's arguments, and reads none of them.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    answers = json.loads(Path(__file__).with_name("answers.json").read_text())
    out = sys.stdout
    out.write("\nboardfit-bootstrap have\n")
    out.write("\nboardfit-agent " + json.dumps(answers["hello"]) + "\n")
    out.flush()
    for line in sys.stdin:
        request = json.loads(line)
        answer = answers.get(request["method"], {})
        out.write(json.dumps({"id": request["id"], "result": answer}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
