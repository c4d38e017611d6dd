"""Device memory for what segments are told where visual tokens are spared work."""

from __future__ import annotations

from atp_runtime.backends.base import Backend, DeviceArray, DeviceBuffer
from atp_runtime.manifest import Manifest
from atp_runtime.selection import IndexArray, VisualTokens
from atp_runtime.structure import MASKED
from atp_runtime.structure_rows import Blocks, StructureRows, token_places
from atp_runtime.tensor_names import PLACES, ROWS, WINDOW


class StructureTables:
    """Writes `StructureRows` to the device, for one sequence at a time.

    Args:
        backend: Whose memory is used.
        manifest: The bundle's.
    """

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self._backend = backend
        structure = manifest.structure
        self._masked = structure is not None and structure.mode == MASKED
        self._blocks = None
        if structure is not None and structure.window is not None:
            self._blocks = Blocks.of(structure.window, manifest.vision.grid)
        self._buffers: dict[str, DeviceBuffer] = {}

    def write(self, visual: VisualTokens, tokens: int) -> dict[str, DeviceArray]:
        """Writes what a sequence needs; returns it by the names of the inputs.

        Args:
            visual: Its visual tokens.
            tokens: Of the sequence.

        Raises:
            MachineError: There is not enough memory.
        """
        if self._masked:
            return {PLACES: self._write(PLACES, token_places(visual, tokens))}
        rows = StructureRows.of(visual, tokens, self._blocks)
        names = ROWS if self._blocks is None else ROWS + WINDOW
        return {name: self._write(name, getattr(rows, name)) for name in names}

    def _write(self, name: str, values: IndexArray) -> DeviceArray:
        held = self._buffers.get(name)
        if held is None or held.nbytes < values.nbytes:
            held = self._backend.allocate_shared(max(values.nbytes, values.itemsize))
            self._buffers[name] = held
        into = held.array(values.shape, "int64")
        if values.size:
            self._backend.write(into, values)
        return into
