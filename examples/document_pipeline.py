"""Extract, chunk and embed documents, each at its own pace, and index the embeddings.

A document is chunked the moment it is extracted, whatever the other documents are doing. CPU-bound
steps run in worker processes, the calls of the embedding service overlap on the event loop.
"""

import asyncio
import math
import re
import zlib
from dataclasses import dataclass

from quantum_async import QuantumPartitioner

DIMENSIONS = 64


@dataclass
class Document:
    id: str
    html: str


@dataclass
class EmbeddingModel:
    """A simulated embedding service: a hashed bag of words, after a little wait."""

    seconds: float

    async def embed(self, text):
        await asyncio.sleep(self.seconds)
        vector = [0.0] * DIMENSIONS
        for word in re.findall(r"\w+", text.lower()):
            # Not hash(): it differs from process to process.
            vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
        length = math.hypot(*vector) or 1.0
        return [value / length for value in vector]


def extract_text(document):
    return " ".join(re.sub(r"<[^>]+>", " ", document.html).split())


def chunk_text(text):
    return [sentence.strip() for sentence in text.split(".") if sentence.strip()]


async def generate_embeddings(chunks, model):
    vectors = await asyncio.gather(*(model.embed(chunk) for chunk in chunks))
    return list(zip(chunks, vectors, strict=True))


def index_embeddings(ctx):
    """Put all embeddings in one list: `ctx.unit_results` has the embed units' and no others."""
    return [entry for embeddings in ctx.unit_results.values() for entry in embeddings]


def create_document_pipeline(documents, embedding_model):
    """Create parallel document processing pipeline."""
    partitioner = QuantumPartitioner(max_workers=4)

    # Add extraction units for each document
    for i, doc in enumerate(documents):
        partitioner.add_unit(
            fn=lambda ctx, d=doc: extract_text(d),
            dependencies=[],  # No dependencies
            name=f"extract_{i}",
            metadata={"document_id": doc.id, "resource_type": "cpu"},
        )

        # Add chunking units depending on extraction
        partitioner.add_unit(
            fn=lambda ctx, i=i: chunk_text(ctx[f"extract_{i}"]),
            dependencies=[f"extract_{i}"],
            name=f"chunk_{i}",
            metadata={"document_id": doc.id, "resource_type": "cpu"},
        )

        # Add embedding units depending on chunking
        partitioner.add_unit(
            fn=lambda ctx, i=i, model=embedding_model: generate_embeddings(
                ctx[f"chunk_{i}"], model
            ),
            dependencies=[f"chunk_{i}"],
            name=f"embed_{i}",
            metadata={"document_id": doc.id, "resource_type": "io"},
        )

    # Add final indexing unit depending on all embedding units
    embedding_units = [f"embed_{i}" for i in range(len(documents))]
    partitioner.add_unit(
        fn=lambda ctx: index_embeddings(ctx),
        dependencies=embedding_units,
        name="index_embeddings",
    )

    return partitioner


async def nearest(index, model, question):
    """Return the indexed sentence that is most like the question."""
    wanted = await model.embed(question)
    return max(index, key=lambda entry: sum(map(float.__mul__, entry[1], wanted)))[0]


def main():
    documents = [
        Document("bees", "<h1>Bees.</h1><p>Bees dance to show where flowers are.</p>"),
        Document("owls", "<p>Owls fly without a sound. Owls hunt at night.</p>"),
        Document("eels", "<p>Eels swim to the <b>Sargasso Sea</b> once in their life.</p>"),
    ]
    model = EmbeddingModel(seconds=0.05)
    partitioner = create_document_pipeline(documents, model)
    plan = partitioner.build_execution_plan()
    print(f"{plan.unit_count} units, critical path: {' -> '.join(plan.critical_path)}")

    results = partitioner.execute({})
    index = results["index_embeddings"]
    print(f"{len(index)} sentences indexed")
    for name in ("extract_0", "chunk_0", "embed_0", "index_embeddings"):
        print(f"  {name} ran on a {partitioner.last_result.units[name].ran_on}")
    question = "When do owls hunt?"
    print(f"{question} {asyncio.run(nearest(index, model, question))}.")


if __name__ == "__main__":
    main()
