"""Start-up hook for environments where torchvision was compiled for CUDA and torch was not.

There, torchvision's compiled operators cannot load and `import torchvision` stops with "operator
torchvision::nms does not exist". Declaring the two operators first is enough: everything works except
non-maximum suppression itself. `env_install.sh` copies this file into the environment's site-packages,
with a .pth file that imports it, only where the failure is seen. It imports torch only at the moment
torchvision is about to be imported, so starting Python costs nothing.
"""

import sys

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareBeforeTorchvision:
    """An import finder that finds nothing: it declares the operators when torchvision is looked for."""

    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(cls)
            import torch

            if torch.version.cuda is None:
                # A class attribute, because the declarations go away with the Library object.
                cls.library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in OPERATORS:
                    cls.library.define(operator + SCHEMA)


sys.meta_path.insert(0, DeclareBeforeTorchvision)
