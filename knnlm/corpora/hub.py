"""Data sets of the Hugging Face hub, streamed: any with a column of text, and Korean Wikipedia."""

from collections.abc import Iterator
from dataclasses import replace

from knnlm.corpora.corpus import Corpus
from knnlm.errors import InputError, needs
from knnlm.text import Document


def hub_corpus(spec: str) -> Corpus:
    """Return a corpus over a streamed Hugging Face dataset, ``name`` or ``name:config``."""
    name, _, config = spec.partition(":")
    if not name.strip("/"):
        raise InputError("hf: names no dataset. Write hf:owner/dataset or hf:owner/dataset:config.")

    def read() -> Iterator[Document]:
        with needs("hub"):
            import datasets

        try:
            rows = datasets.load_dataset(name, config or None, split="train", streaming=True)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            first_line = str(error).splitlines()[0]
            raise InputError(
                f"The dataset {name!r} (config {config or 'default'!r}) cannot be opened: "
                f"{first_line} Check the name and the connection, or give a local folder."
            ) from error
        for i, row in enumerate(rows):
            if "text" not in row:
                raise InputError(
                    f"The dataset {name!r} has the columns {', '.join(row)} but no 'text'. "
                    "Choose a dataset with a text column."
                )
            yield Document(str(row.get("title") or row.get("id") or i), row["text"])

    return Corpus(
        name=f"hf:{spec}",
        title=f"the hub dataset {spec}, streamed",
        license="see the dataset's card",
        source=name,
        citation="see the dataset's card",
        read=read,
        streamed=True,
    )


KOWIKI = replace(
    hub_corpus("wikimedia/wikipedia:20231101.ko"),
    name="kowiki",
    title="Korean Wikipedia of November 2023, streamed from the hub: the study's text",
    license="CC BY-SA 4.0 and GFDL",
    citation="Wikimedia Foundation. Wikimedia Downloads. https://dumps.wikimedia.org",
)
