"""The Python side of the book: `checks` of the readers' answers, pictures that one chapter `show`s, recorded `data`
and how it was made, and `_ext`, the Sphinx extension. `labcode`, the science, imports none of it.
"""
