// Listeners by event type.

/** An event: its type tells its other fields. */
interface Typed {
  readonly type: string;
}

/** Reports an exception of the application's code like one that nobody caught. It does not cost the connection. */
export function report(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

/** Calls listeners with events. An exception in one is reported like one that nobody caught. */
export class Emitter<Event extends Typed> {
  readonly #listeners = new Map<string, Set<(event: never) => void>>();

  /** Calls `listener` with each event of a type. Returns a function that stops it. */
  on<Type extends Event["type"]>(type: Type, listener: (event: Extract<Event, { type: Type }>) => void): () => void {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }

  protected emit(event: Event): void {
    for (const listener of this.#listeners.get(event.type) ?? []) {
      try {
        listener(event as never);
      } catch (error) {
        report(error);
      }
    }
  }
}
