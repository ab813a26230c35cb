"""Write torchvision's ImageNet weights of a network to a file, where one is online.

python examples/tiny_imagenet/fetch.py resnet50 resnet50.pth
"""

import sys

import torch
import torchvision

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(str(__doc__))
    torch.save(torchvision.models.get_model(sys.argv[1], weights="DEFAULT").state_dict(), sys.argv[2])
