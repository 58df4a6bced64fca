"""Kinds (modalities): a room each, which holds everything of itself: cleaning, training, export, answers.

Belongs here: what every system of a kind shares. Does not belong here: what one system alone has (`systems/`), any promise (`lifecycle/`).
"""
