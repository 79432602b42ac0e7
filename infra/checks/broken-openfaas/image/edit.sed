s#/count:#/store:#
