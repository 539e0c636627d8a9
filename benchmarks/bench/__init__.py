"""`make bench`: every engine on the same texts, in turn, each in a virtual environment of its own.

`workload` makes the texts, `environments` the places where engines live, `children` run there, `engines` speak to them,
`works` are what is measured, `runner` takes turns, `goals` and `report` say what came out. Each engine gets a text once
only, so that no cache of embeddings helps, and one that is not its turn is stopped by a signal, so that it cannot spin.
"""
