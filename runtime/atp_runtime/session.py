"""The runtime's front door: open a bundle, ask questions about photos, chat.

with Session.open(Path("bundle")) as session:
answer = session.ask("What is this?", images=["photo.jpg"])
print(answer.text)
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from atp_runtime.answer import Answer
from atp_runtime.backends import BACKENDS, Backend, open_backend
from atp_runtime.bundle import Bundle
from atp_runtime.chat import ChatTemplate
from atp_runtime.context import Context
from atp_runtime.conversation import Conversation, ImageSources, Model
from atp_runtime.decoder import SegmentedDecoder
from atp_runtime.embedding import EmbeddingTable
from atp_runtime.errors import InputError
from atp_runtime.generation import GenerationOptions, ShowText
from atp_runtime.photo_memory import PhotoMemory
from atp_runtime.prompt import PromptWriter
from atp_runtime.ranges import Range, marked_parts
from atp_runtime.selection import Selectors
from atp_runtime.text_mean import TextMean
from atp_runtime.tokenizer import Tokenizer
from atp_runtime.vision import VisionEncoder

__all__ = ["Answer", "Conversation", "Session"]

_LEAST_CAPACITY = 1  # each prompt makes the caches as large as it needs


class Session:
    """A bundle, loaded. One conversation at a time uses its caches.

    Args:
        bundle: An opened bundle.
        backend: What runs it.

    Raises:
        InputError: The bundle cannot be used.
        MachineError: Memory does not suffice.

    Attributes:
        model: The bundle's parts. Its `select` may be replaced, to prune by another rule.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        bundle = backend.fastest_view(bundle)
        processor = bundle.root / bundle.manifest.processor
        tokenizer = Tokenizer.from_dir(processor)
        template = ChatTemplate.from_dir(processor)
        with ExitStack() as loaded:
            embedding = EmbeddingTable.open(bundle)
            vision = VisionEncoder(bundle, backend, TextMean(tokenizer, embedding))
            loaded.callback(vision.close)
            decoder = SegmentedDecoder(bundle, backend, _LEAST_CAPACITY)
            loaded.callback(decoder.close)
            self.model = Model(
                bundle.manifest,
                tokenizer,
                PromptWriter(template, tokenizer, bundle.manifest.vision.image_token_id),
                vision,
                PhotoMemory(vision.encode, asks_text=vision.asks_text),
                decoder,
                Context(bundle.manifest, embedding, decoder),
                Selectors.open(bundle.root, bundle.manifest),
            )
            self._loaded = loaded.pop_all()
        self._current: Conversation | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        backend: str = BACKENDS[0],
        threads: int | None = None,
        cuda_graphs: bool = True,
        packed: bool = True,
    ) -> Session:
        """Opens and loads a bundle.

        Args:
            path: The bundle's directory.
            backend: What runs it, see `atp_runtime.backends.open_backend`.
            threads: CPU threads; None lets the backend decide.
            cuda_graphs: Whether decode steps may be recorded as CUDA graphs.
            packed: Whether the CPU's weights are packed, which pays from some ten answers.

        Raises:
            InputError: The bundle cannot be used.
            CheckFailedError: A file of it was changed.
            MachineError: Memory does not suffice, or a package or the GPU is missing.
        """
        opened = open_backend(backend, threads=threads, cuda_graphs=cuda_graphs, packed=packed)
        return cls(Bundle.open(path), opened)

    def __enter__(self) -> Session:
        """Returns itself; `close` is called at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back; the session cannot be used any more."""
        self._end_conversation()
        self._closed = True
        self._loaded.close()

    def mark_parts(self, make: Range) -> None:
        """Puts the parts of answers into named ranges, until the session is closed.

        Args:
            make: Makes a range, see `atp_runtime.ranges.open_nvtx`.
        """
        self._loaded.enter_context(marked_parts(self.model, make))

    def conversation(self, system: str | None = None) -> Conversation:
        """Begins a conversation; the one before it ends.

        Args:
            system: The system prompt; None leaves it to the chat template.

        Raises:
            InputError: The system prompt has the image placeholder in it, or the session is
                closed.
        """
        if self._closed:
            raise InputError(
                "the session is closed", why="its bundle is unloaded.", fix="open another session."
            )
        self._end_conversation()
        self._current = Conversation(self.model, system)
        return self._current

    def ask(
        self,
        question: str,
        images: ImageSources = (),
        options: GenerationOptions | None = None,
        show: ShowText | None = None,
    ) -> Answer:
        """Asks one question in a conversation of its own; see `Conversation.ask`."""
        return self.conversation().ask(question, images, options, show)

    def _end_conversation(self) -> None:
        if self._current:
            self._current.end()
            self._current = None
