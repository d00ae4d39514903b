"""Regenerate the protobuf code and compare: what is committed must be what the .proto files say."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Exit code 0 where every generated file is as committed."""
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as out:
        arguments = [f"-I{ROOT / 'protos'}", f"--python_out={out}", f"--pyi_out={out}", *map(str, protos)]
        if protoc.main(["protoc", *arguments]) != 0:
            return 1
        stale = [
            made.relative_to(out)
            for made in sorted(Path(out).rglob("*.py*"))
            if not (ROOT / made.relative_to(out)).exists()
            or (ROOT / made.relative_to(out)).read_bytes() != made.read_bytes()
        ]
    for path in stale:
        print(f"{path} is not what its .proto says: run `make protos`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
