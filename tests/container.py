"""Take files of scvae apart and put them together again, with checksums that agree or not.

Written from the description of the format, not from `scvae.io`: it is what the tests compare with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Container:
    """A file: description and checksums, table of the tensors, and their bytes."""

    metadata: dict[str, Any]
    table: dict[str, Any]
    body: bytes
    text: str | None = field(default=None)  # the JSON of the header, where it is not to be made

    @classmethod
    def of(cls, data: bytes) -> Container:
        begin = 8 + int.from_bytes(data[:8], "little")
        table = json.loads(data[8:begin])
        return cls(table.pop("__metadata__"), table, data[begin:])

    @property
    def description(self) -> Any:
        return json.loads(self.metadata["scvae"])

    @description.setter
    def description(self, value: Any) -> None:
        self.metadata["scvae"] = json.dumps(value)

    def sealed(self) -> Container:
        """Return itself with checksums that agree with the rest."""
        whole = json.dumps([self.metadata["scvae"], self.table], sort_keys=True).encode()
        self.metadata["sha256_header"] = hashlib.sha256(whole).hexdigest()
        self.metadata["sha256_tensors"] = hashlib.sha256(self.body).hexdigest()
        return self

    def data(self) -> bytes:
        made = json.dumps({"__metadata__": self.metadata, **self.table})
        header = (made if self.text is None else self.text).encode("utf-8", "surrogatepass")
        return len(header).to_bytes(8, "little") + header + self.body
