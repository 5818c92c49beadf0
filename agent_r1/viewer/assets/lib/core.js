// Preact, its hooks and htm: everything that draws takes them from here.
export {
  html, render, createContext,
  useState, useEffect, useLayoutEffect, useMemo, useRef, useContext, useCallback,
} from "../vendor/preact.js";
