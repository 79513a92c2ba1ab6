-- Records are written in form 2 from here on, which programs before can't read. The tables stay as they are.
DO 0;
