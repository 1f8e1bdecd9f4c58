"""What is read of users' programs: objects, classes, Python modules, functions and their variables. Nothing is run."""
