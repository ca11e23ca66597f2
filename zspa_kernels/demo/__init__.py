# SPDX-License-Identifier: Apache-2.0
"""`zspa demo`: visual token selection on a photograph, without a model (needs the extra `demo`)."""
