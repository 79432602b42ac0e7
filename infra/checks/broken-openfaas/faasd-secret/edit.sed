s#lambda-forwarder$#lambda-store#
