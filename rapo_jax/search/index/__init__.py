"""The search index on disk: a corpus of passages of any size, built in bounded memory.

FOLDER/build.json        corpus, encoder and options; a build with others is refused
FOLDER/shard-00000/      a part of the corpus, whole or not there
    texts.bin, offsets.npy   ids and contents, memory-mapped; offsets [2n + 1] int64
    texts.json               counts and digest of the part
    keys.npy                 embeddings [n, E] float16, memory-mapped
    tree/                    ScaNN's tree and codes, which propose candidates
    keys.json                written last
FOLDER/texts.json        written once all texts are there: counts, digest, malformed lines
FOLDER/encoder/          the files that embed a query
FOLDER/digests.json      size and digest of what a query reads
FOLDER/manifest.json     written once the index is whole
"""
