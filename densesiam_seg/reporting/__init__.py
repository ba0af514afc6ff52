"""A model and images → pages and lists for people: what was found, how sure it is, where two models differ.

Imports `evaluation`, `prediction` and what lies below them. `survey` looks at each image once (`observing`, `novelty`);
`report`, `review` and `comparing` are the use cases; `page`, `templates`, `charts` and `pictures` make one file of HTML
of what they found, and `run_files` reads what a run says of itself.
"""
