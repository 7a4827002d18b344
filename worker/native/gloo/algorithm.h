// The wheel ships c10d's headers and not the gloo headers that they include. These declarations,
// our own, are what ProcessGroupGloo.hpp needs to compile; gloo itself is inside libtorch.
#pragma once
