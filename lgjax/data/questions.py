REFERRING = ("Locate {t}.",)
BRIEF = ("Sum up this picture in one sentence.",)
GROUNDING_SUFFIXES = ("(with grounding)", "with regions")
REGION = ("Describe the object <obj> .",)
