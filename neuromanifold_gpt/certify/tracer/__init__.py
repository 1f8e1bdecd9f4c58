"""Put on PYTHONPATH for the second look at a failure; ``sitecustomize`` in it runs when the program's Python starts."""
