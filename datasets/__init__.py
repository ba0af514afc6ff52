"""Benchmarks as data: one TOML file per dataset, one small reader.

A user adds a dataset by writing such a file and giving its path where a built-in name is expected:

    title = "My scenes"                # optional, like name, protocol, kind, colour, lists, expected
    protocol = "full-image"            # the evaluation's default: picie, stego or full-image
    image_suffixes = [".jpg", ".png"]  # what follows a sample's name in the name of its image,
    label_suffix = ".png"              # and of its label
    ignore_values = [255]              # label values of no class, also -1; ignore_rgb = [[0, 0, 0]] for colours
    absent_values = [6]                # optional: values that no label holds; one that does is wrong
    classes = [                        # in the order of their ids 0, 1, ...
        { name = "road", kind = "stuff", colour = [128, 64, 128], values = [7, 8] },
        { name = "car", kind = "thing", values = [26] },
    ]                                  # all classes by `values`, or all by `rgb` = [[R, G, B], ...]

    [splits.val]                       # the default split is `val`, else the first
    images = ["images/val", "val"]     # folders below the root: the first that exists is taken
    labels = ["labels/val"]
    lists = ["lists/val.txt"]          # names, one a line; where absent, every image of the folder
    expected = 101                     # samples of the official split; for information

A sample's name is its image's path below the image folder without the suffix; its label is that name with the label's
suffix below the label folder. Letter case counts only where it tells two files apart. Both folders may be one, or one
may hold the other, if the suffixes tell images from labels. Hidden files, folders of file servers and linked folders
are passed over. A list has one name or one path of an image a line, or an image and its label: `lists` describes it.

A label value that is neither of a class nor ignored is an error. So is an absent one, also where a class names it:
it tells labels that are numbered otherwise (ids that begin at 1) from those that are meant.

Imports `images`, `config`, `errors` and pydantic. `declaration` reads such a file, `reader` finds the samples of a
split on the disk by an `index` of its folders and by `lists`, `labels` reads a label; `scenes` draws the scenes of the
demonstration.
"""
