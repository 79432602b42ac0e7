s/scale.max: "5"/scale.max: "10"/
