"""Files of users and of strangers: opened with care, read within limits, written whole or not at all.

Reading: only regular files (``regular``), and what is below a directory (``below``); JSON (``json_text``), headers of
safetensors (``safetensors_header``) and of GGUF files (``gguf``), users' texts (``text``); whether a file is still the
one that it was (``stamps``). Writing: ``replacing``. Names: what the text that names a model means (``naming``), what
other programs would mean by it (``other_programs``), and the folder where stores have names (``home``).
"""
