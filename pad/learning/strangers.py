"""Which images of a folder do not belong there, without a label.

A tenth of cats among dogs draws the mean and the covariance towards itself: under a Gaussian of all images
they look as normal as the dogs (*masking*). So the Gaussians are concentrated on the images that are most
like the others, step by step, as the minimum covariance determinant is found (Rousseeuw and Van Driessen,
1999), with two differences: every image is judged by a fit on folds that it is not in, since of a fit in many
dimensions the images that it is made of look closest; and the start is the distance to the nearest quarter of
the images, in which no smaller group finds enough of its own (as deterministic starts go: Hubert et al.,
2012).

    zᵢ = (u − median u) / (median u − 16 % quantile of u),  u = log (0.75/0.78 e^(whole) + 0.03/0.78 e^(middle))

says how *far* image i is from the bulk, in deviations of the lower half, which no stranger touches; whole and
middle are log-distances in the same units. That alone is no proof: the tail of what is normal is far too, and
to leave it out costs more than strangers would (Fashion-MNIST: up to 0.02 of ROC AUC). A group *stands apart*
if its nearest relatives are far as well, and a gap lies between it and the others: along the direction that
tells the two apart best, found in folds, fewer images lie in the middle third than GAP of those in the group.
"""
